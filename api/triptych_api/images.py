"""OpenAI's images: generations, edits, models."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from triptych.errors import invalid
from triptych.pictures import header
from triptych.types import Completed, GeneratedImage, InProgress
from triptych_contract.parameters import File, Files

from .asked import Asked, asked, body_of
from .errors import Json
from .events import stream, unless_gone
from .models import Model, Models
from .pictures import data_url
from .record import Record, record_of

# What OpenAI calls the qualities in its answers.
TOLD_QUALITY = {"low": "low", "high": "high", "hd": "high"}


class Images:
    """The routes below /v1 that OpenAI's SDKs call."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self.routes = [
            Route("/v1/images/generations", self.generations, methods=["POST"]),
            Route("/v1/images/edits", self.edits, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{id:path}", self.model, methods=["GET"]),
        ]

    async def generations(self, request: Request) -> Response:
        """Draw pictures."""
        return await self._answer(request, "image_generation", edit=False)

    async def edits(self, request: Request) -> Response:
        """Draw pictures that begin with one, or paint a part of it anew."""
        return await self._answer(request, "image_edit", edit=True)

    async def models(self, _: Request) -> Response:
        """List the models."""
        return Json({"object": "list", "data": [_model(one) for one in (await self._models.all()).values()]})

    async def model(self, request: Request) -> Response:
        """Tell of one model."""
        return Json(_model(await self._models.get(request.path_params["id"])))

    async def _answer(self, request: Request, kind: str, *, edit: bool) -> Response:
        record = record_of(request)
        wanted = await asked(await body_of(request), self._models, record.caller, edit=edit)
        if wanted.fields.get("stream"):
            if wanted.n > 1:
                raise invalid("n", f"{wanted.n} with stream", "1 with stream")
            return await stream(_events(self._models, wanted, kind, record))
        return Json(images_answer(wanted, await unless_gone(request, draw(self._models, wanted, record))))


async def draw(models: Models, wanted: Asked, record: Record) -> list[GeneratedImage]:
    """Draw all pictures at once, as so many jobs in one batch; all are cancelled where one fails, or nobody waits.

    Raises:
        TriptychError: as `AsyncClient.generate_many`; fields by the caller's names.
    """
    with record.begun(wanted), wanted.told(models):
        images = await wanted.model.client.generate_many(n=wanted.n, **wanted.settings)
        record.drawn(images)
        return images


async def _events(models: Models, wanted: Asked, kind: str, record: Record) -> AsyncIterator[Mapping[str, Any]]:
    """Give OpenAI's events: previews of the loop as partial images, spread evenly over the steps, then the picture."""
    partial, told = int(wanted.fields.get("partial_images", 0)), 0
    with record.begun(wanted), wanted.told(models):
        async for event in wanted.model.client.stream(previews=partial > 0, **wanted.settings):
            if isinstance(event, Completed):
                record.drawn([event.image])
                yield _completed(wanted, kind, event.image)
            elif isinstance(event, InProgress) and event.preview and _due(event, told, partial):
                yield _partial(kind, event.preview, told)
                told += 1


def _due(event: InProgress, told: int, partial: int) -> bool:
    return told < partial and event.step * (partial + 1) >= event.total * (told + 1)


def _partial(kind: str, preview: bytes, index: int) -> dict[str, Any]:
    from PIL import Image

    with Image.open(io.BytesIO(preview)) as image:
        size = f"{image.width}x{image.height}"
    told = {"b64_json": base64.b64encode(preview).decode(), "created_at": int(time.time()), "size": size}
    shape = {"quality": "low", "background": "opaque", "output_format": "png"}
    return {"type": f"{kind}.partial_image", **told, **shape, "partial_image_index": index}


def _completed(wanted: Asked, kind: str, image: GeneratedImage) -> dict[str, Any]:
    answer = images_answer(wanted, [image])
    (datum,) = answer.pop("data")
    created = answer.pop("created")
    return {"type": f"{kind}.completed", "created_at": created, **datum, **answer}


def images_answer(wanted: Asked, images: Sequence[GeneratedImage]) -> dict[str, Any]:
    """Write OpenAI's answer; beside each picture the receipt, under `triptych`."""
    as_url = wanted.fields.get("response_format") == "url"
    receipt = images[0].receipt
    return {
        "created": int(time.time()),
        "data": [_datum(image, as_url=as_url) for image in images],
        "background": "opaque",
        "output_format": images[0].format,
        "quality": TOLD_QUALITY.get(str(wanted.fields.get("quality")), "medium"),
        "size": _size(images[0]),
        "usage": _usage(wanted, receipt, len(images)),
    }


def _size(image: GeneratedImage) -> str:
    """Tell the size of the file; where a part of a picture was painted, that is not the size that it was painted at."""
    sides = image.receipt["width"], image.receipt["height"]
    if image.receipt.get("padding_mask_crop") is not None:
        found = header("image", image.data)
        sides = found.width, found.height
    return "{}x{}".format(*sides)


def _datum(image: GeneratedImage, *, as_url: bool) -> dict[str, Any]:
    file = (
        {"url": data_url(image.data, image.format)} if as_url else {"b64_json": base64.b64encode(image.data).decode()}
    )
    told = {"seed": image.seed, "request_id": image.request_id, "cached": image.cached}
    return {**file, "triptych": {**told, "timings": dict(image.timings), "receipt": dict(image.receipt)}}


def _usage(wanted: Asked, receipt: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Count what models read and make: positions of a text encoder, latents of a picture to start from, latents drawn."""
    card = wanted.model.card
    sizes = card.sizes(receipt["height"], receipt["width"])
    latents = sizes["latent_height"] * sizes["latent_width"]
    texts = 1 + (receipt.get("negative_prompt") is not None)
    declared = wanted.model.family.parameters
    one_each = sum(isinstance(declared[name].kind, File) for name in wanted.settings)
    pictures = one_each + sum(
        len(wanted.settings[name]) for name in wanted.settings if isinstance(declared[name].kind, Files)
    )
    read = {"text_tokens": texts * card.tokenizers[0].max_length, "image_tokens": pictures * latents}
    total_in = sum(read.values())
    return {
        "total_tokens": total_in + n * latents,
        "input_tokens": total_in,
        "output_tokens": n * latents,
        "input_tokens_details": read,
    }


def _model(one: Model) -> dict[str, Any]:
    told = {"ensemble": one.ensemble, "model": one.card.name, "settings": dict(one.settings)}
    return {"id": one.name, "object": "model", "created": 0, "owned_by": "triptych", "triptych": told}
