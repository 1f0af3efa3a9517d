"""The OpenAPI document, made from OpenAI's fields and the contract's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triptych_contract.families import FAMILIES
from triptych_contract.parameters import (
    Choice,
    File,
    Files,
    Flag,
    Integer,
    Integers,
    Kind,
    LongInteger,
    Number,
    OfModel,
    Parameter,
    Text,
)

from .asked import FIELDS

Schema = dict[str, Any]
PICTURE: Schema = {"type": "string", "description": "A data URL or base64 of a PNG, JPEG or WebP file."}
ERROR: Schema = {"$ref": "#/components/schemas/Error"}
STATUSES = {
    400: "Something is wrong, and `param` says what; nothing was begun.",
    401: "No key, a wrong one, or a revoked one.",
    403: "Another site's page.",
    404: "No such model, job or path.",
    408: "The deadline passed, or the body came too slowly.",
    409: "The idempotency key came with another body.",
    410: "Somebody cancelled it.",
    413: "The body is too large.",
    415: "The body is of another type.",
    429: "A limit, or a full queue; `Retry-After` has the seconds.",
    503: "No server answers.",
}
JOB_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def schema_of(kind: Kind) -> Schema:
    """Give what is legal as far as a schema can say it; limits that hang on the model are the server's to judge."""
    if isinstance(kind, File):
        return PICTURE
    if isinstance(kind, Files):
        return {"type": "array", "items": PICTURE, "minItems": 1, "maxItems": kind.most}
    if isinstance(kind, Flag):
        return {"type": "boolean"}
    if isinstance(kind, Integers):
        item = {"type": "integer", "minimum": kind.low, "maximum": kind.high}
        return {"type": "array", "items": item, "minItems": kind.count, "maxItems": kind.count}
    if isinstance(kind, Integer):
        high = 2**kind.bits - 1 if isinstance(kind.high, OfModel) else kind.high
        named = {"format": "int64"} if isinstance(kind, LongInteger) else {}
        return {"type": "integer", "minimum": kind.low, "maximum": high, **named}
    if isinstance(kind, Number):
        ends = ("exclusiveMinimum", "exclusiveMaximum") if kind.between else ("minimum", "maximum")
        return {"type": "number", ends[0]: kind.low, ends[1]: kind.high}
    if isinstance(kind, Choice) and not isinstance(kind.names, OfModel):
        return {"type": "string", "enum": list(kind.names)}
    if isinstance(kind, (Choice, Text)):
        least = {"minLength": 1} if isinstance(kind, Text) and not kind.blank else {}
        return {"type": "string", **least}
    return {"description": kind.legal}


def document(version: str) -> Schema:
    """Write the document of every path."""
    declared = {name: one for family in reversed([*FAMILIES.values()]) for name, one in family.parameters.items()}
    ours = {name: _described(one) for name, one in declared.items()}
    openai = {"model": {"type": "string", "description": "As GET /v1/models lists them."}, **_fields()}
    generation = _object({**ours, **openai}, required=["prompt"])
    images = {"images": {"type": "array", "items": _linked(), "minItems": 1, "maxItems": 1}, "mask": _linked()}
    edit = _object({**ours, **openai, **images}, required=["prompt", "images"])
    form = {name: {"type": "string"} for name in generation["properties"]} | {"image": _binary(), "mask": _binary()}
    webhook = _object({"url": {"type": "string"}, "secret": {"type": "string"}}, required=["url", "secret"])
    streamed = {"stream", "partial_images"}
    job = {name: one for name, one in generation["properties"].items() if name not in streamed} | {"webhook": webhook}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Triptych",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/v1/images/generations": {
                "post": _operation("generate", "Draw pictures.", "Images", json=generation, events=True)
            },
            "/v1/images/edits": {
                "post": _operation(
                    "edit",
                    "Draw pictures that begin with one; what is transparent in `mask` is painted anew.",
                    "Images",
                    json=edit,
                    form=_object(form, required=["image", "prompt"]),
                    events=True,
                )
            },
            "/v1/models": {"get": _operation("listModels", "List the models.", "Models")},
            "/v1/models/{id}": {"get": _operation("getModel", "Tell of a model.", "Model", parameters=[JOB_ID])},
            "/v1/jobs": {
                "post": _operation(
                    "createJob",
                    "Take a job; the same `Idempotency-Key` with the same body gives the same one.",
                    "Job",
                    json=_object(job, required=["prompt"]),
                    status=202,
                    parameters=[_header("Idempotency-Key")],
                )
            },
            "/v1/jobs/{id}": {
                "get": _operation("getJob", "Tell of a job.", "Job", parameters=[JOB_ID]),
                "delete": _operation(
                    "deleteJob", "Stop a job, or forget one that has ended.", "Job", parameters=[JOB_ID]
                ),
            },
            "/v1/jobs/{id}/events": {
                "get": _operation("followJob", "Tell of a job as it goes.", None, parameters=[JOB_ID], events=True)
            },
            **{
                f"/sdapi/v1/{name}": {"post": _operation(name, words, "A1111", json=_anything())}
                for name, words in A1111_POSTS.items()
            },
            **{f"/sdapi/v1/{name}": {"get": _operation(name, words, "A1111")} for name, words in A1111_GETS.items()},
            "/healthz": {"get": _operation("health", "Tell that this process answers.", "Any")},
            "/readyz": {"get": _operation("ready", "Ask the loop.", "Any")},
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


A1111_POSTS = {"txt2img": "Draw pictures.", "img2img": "Draw pictures that begin with one."}
A1111_GETS = {
    "progress": "Tell how far the caller's oldest request is.",
    "samplers": "List the samplers, by A1111's names.",
    "schedulers": "List the schedules.",
    "sd-models": "List the models.",
    "loras": "List the adapters.",
    "options": "Tell what requests have that override nothing.",
}


def _fields() -> Schema:
    return {
        name: {**schema_of(kind), "description": f"{kind.legal[:1].upper()}{kind.legal[1:]}."}
        for name, kind in FIELDS.items()
    }


def _described(one: Parameter) -> Schema:
    return {**schema_of(one.kind), "description": one.told}


def _linked() -> Schema:
    return _object({"image_url": PICTURE}, required=["image_url"])


def _binary() -> Schema:
    return {"type": "string", "format": "binary"}


def _object(properties: Mapping[str, Any], required: list[str]) -> Schema:
    return {"type": "object", "properties": dict(properties), "required": required, "additionalProperties": False}


def _anything() -> Schema:
    return {"type": "object"}


def _header(name: str) -> Schema:
    return {"name": name, "in": "header", "schema": {"type": "string", "minLength": 1, "maxLength": 255}}


def _operation(
    id: str,
    words: str,
    answer: str | None,
    *,
    json: Schema | None = None,
    form: Schema | None = None,
    events: bool = False,
    status: int = 200,
    parameters: list[Schema] | None = None,
) -> Schema:
    content: Schema = {"application/json": {"schema": {"$ref": f"#/components/schemas/{answer}"}}} if answer else {}
    if events:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    bodies = {"application/json": json, "multipart/form-data": form}
    body = {kind: {"schema": schema} for kind, schema in bodies.items() if schema}
    errors = {
        str(code): {"description": told, "content": {"application/json": {"schema": ERROR}}}
        for code, told in STATUSES.items()
    }
    return {
        "operationId": id,
        "summary": words,
        **({"parameters": parameters} if parameters else {}),
        **({"requestBody": {"required": True, "content": body}} if body else {}),
        "responses": {str(status): {"description": "Done.", "content": content}, **errors},
    }


def _schemas() -> Schema:
    text, number = {"type": "string"}, {"type": "integer"}
    maybe = {"type": ["string", "null"]}
    problem = _object({"field": text, "given": text, "legal": text}, required=["field", "given", "legal"])
    error = {
        "message": text,
        "type": text,
        "param": maybe,
        "code": maybe,
        "problems": {"type": "array", "items": problem},
    }
    model = {
        "id": text,
        "object": {"const": "model"},
        "created": number,
        "owned_by": text,
        "triptych": {"type": "object"},
    }
    datum = {"b64_json": text, "url": text, "triptych": {"type": "object"}}
    images = {
        "created": number,
        "data": {"type": "array", "items": _object(datum, ["triptych"])},
        "usage": {"type": "object"},
    }
    images |= dict.fromkeys(("background", "output_format", "quality", "size"), text)
    job = {"id": text, "object": {"const": "job"}}
    return {
        "Error": _object({"error": _object(error, ["message", "type", "param", "code"])}, ["error"]),
        "Images": _object(images, list(images)),
        "Model": _object(model, list(model)),
        "Models": _object(
            {"object": {"const": "list"}, "data": {"type": "array", "items": _object(model, list(model))}},
            ["object", "data"],
        ),
        "Job": {"type": "object", "properties": job, "required": list(job)},
        "A1111": {"type": ["object", "array"]},
        "Any": {"type": "object"},
    }
