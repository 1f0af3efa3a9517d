"""What a caller asks for: OpenAI's fields and the contract's, as one checked request for a model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from starlette.datastructures import UploadFile
from starlette.requests import Request

from triptych.errors import InvalidRequest, Problem, ServerUnavailable, invalid
from triptych.pictures import UNREADABLE
from triptych.request import judge
from triptych_contract.errors import shown
from triptych_contract.parameters import Choice, File, Files, Flag, Integer, Integers, Kind, Number, Text

from .errors import Refusal, renamed
from .keys import Caller
from .models import Model, Models
from .pictures import LEGAL, openai_mask, picture

MAX_N = 10
# `quality` → what the model's own number of steps is multiplied by.
QUALITY = {"low": 0.5, "medium": 1.0, "standard": 1.0, "auto": 1.0, "high": 2.0, "hd": 2.0}
# OpenAI's own fields beside `prompt`, `model` and `output_format`; the contract has all others.
FIELDS: Mapping[str, Kind] = {
    "n": Integer(1, MAX_N),
    "size": Text(32),
    "quality": Choice(tuple(QUALITY)),
    "response_format": Choice(("b64_json", "url")),
    "stream": Flag(),
    "partial_images": Integer(0, 3),
    "background": Choice(("auto", "opaque")),
    "moderation": Choice(("auto", "low")),
    "output_compression": Integer(100, 100),
    "user": Text(512),
}
SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
MAX_FIELDS, MAX_FILES = 200, 20


@dataclass(frozen=True)
class Asked:
    """Pictures that were asked for and are legal, as far as that can be known before a picture is decoded.

    Args:
        settings: by the contract's names; pictures as the bytes of their files.
        fields: OpenAI's, those that were given.
        names: what the caller calls a setting, where that is another name.
    """

    model: Model
    settings: dict[str, Any]
    fields: Mapping[str, Any]
    names: Mapping[str, str]

    @property
    def n(self) -> int:
        """How many pictures."""
        return int(self.fields.get("n", 1))

    @contextlib.contextmanager
    def told(self, models: Models) -> Iterator[None]:
        """Tell what the server finds wrong by the caller's names, and have it asked anew where it goes away.

        Raises:
            TriptychError: what is raised inside.
        """
        try:
            yield
        except InvalidRequest as error:
            raise renamed(error, self.names) from None
        except ServerUnavailable:
            models.forget()
            raise


async def body_of(request: Request) -> dict[str, Any]:
    """Read a body: a JSON object, or a form, whose values are text and files; a name that comes twice has a list.

    Raises:
        Refusal: it is neither, or broken.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _document(await request.body())
    if kind != "multipart/form-data":
        words = str(invalid("content-type", shown(kind), "application/json, multipart/form-data"))
        raise Refusal(415, words, "unsupported_media_type", param="content-type")
    try:
        form = await request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS)
    except (AttributeError, KeyError, LookupError, UnicodeError, ValueError) as error:
        raise broken(f"no form ({type(error).__name__})") from None
    found: dict[str, Any] = {}
    for name, value in form.multi_items():
        read = await value.read() if isinstance(value, UploadFile) else value
        found.setdefault(name.removesuffix("[]"), []).append(read)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def broken(given: str, legal: str = "a JSON object") -> Refusal:
    """Make the answer to a body that is none."""
    return Refusal(400, str(invalid("body", given, legal)), "invalid_body", param="body")


def _document(data: bytes) -> dict[str, Any]:
    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    try:
        found = json.loads(data, parse_constant=no_number)
    except (RecursionError, ValueError) as error:
        raise broken(f"no JSON ({str(error)[:80]})") from None
    if not isinstance(found, dict):
        raise broken(f"a {type(found).__name__}")
    return found


async def asked(body: Mapping[str, Any], models: Models, caller: Caller, *, edit: bool = False) -> Asked:
    """Check what a body of OpenAI's asks for; all that is wrong is told at once.

    Args:
        body: as `body_of` gives it.
        edit: whether `image` and `mask` are those of OpenAI's edits.

    Raises:
        Refusal: there is no such model.
        InvalidRequest: has all problems, by the caller's own names.
    """
    given = {name: value for name, value in body.items() if value is not None}
    reading = Reading(await models.get(given.pop("model", None)))
    if edit:
        await asyncio.to_thread(reading.take_pictures, given)
    for name, value in given.items():
        reading.take(name, value)
    reading.size()
    reading.quality()
    return await finished(reading, caller)


async def finished(reading: Reading, caller: Caller) -> Asked:
    """Judge the settings as the server would.

    Raises:
        InvalidRequest: has all problems, those that were found before as well.
    """
    model, settings = reading.model, {**reading.model.settings, **reading.settings}
    if caller.tenant:
        if "tenant" in reading.settings:
            reading.refuse("tenant", reading.settings["tenant"], "nothing: the key says it")
        settings["tenant"] = caller.tenant
    problems, told = reading.problems, {problem.field for problem in reading.problems}
    try:
        args = (model.ensemble, {"prompt": None, **settings}, model.family.settings, model.card)
        if _pictures(model, settings):
            await asyncio.to_thread(judge, *args)
        else:
            judge(*args)
    except InvalidRequest as error:
        found = map(_over_http, renamed(error, reading.names).problems)
        problems += [problem for problem in found if problem.field not in told]
    if problems:
        raise InvalidRequest(problems)
    return Asked(model, settings, reading.fields, reading.names)


def _over_http(problem: Problem) -> Problem:
    """Leave out what is legal in Python only: paths and PIL's images."""
    return problem._replace(legal=LEGAL) if problem.given.startswith(UNREADABLE) else problem


def _pictures(model: Model, settings: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name, one in model.family.parameters.items()
        if isinstance(one.kind, (File, Files)) and name in settings
    ]


class Reading:
    """A request while it is read."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.settings: dict[str, Any] = {}
        self.fields: dict[str, Any] = {}
        self.names: dict[str, str] = {}
        self.problems: list[Problem] = []

    def refuse(self, field: str, given: object, legal: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(field, shown(given, str), legal).cut)

    def take(self, name: str, value: Any, called: str = "") -> None:
        """Take a field of OpenAI's or an input of the contract's; what the caller `called` it."""
        declared = self.model.family.parameters
        kind = FIELDS.get(name) or (declared[name].kind if name in declared else None)
        if called and called != name:
            self.names[name] = called
        try:
            if kind is None:
                legal = ", ".join([*FIELDS, *(one for one in declared if one != "tenant")])
                raise invalid(name, "an unknown parameter", legal)
            if isinstance(kind, File):
                self.settings[name] = picture(name, value)
            elif isinstance(kind, Files):
                given = value if isinstance(value, list) else [value]
                self.settings[name] = [picture(name, one) for one in kind.few(name, given)]
            elif name in FIELDS:
                self.fields[name] = kind.check(name, kind.typed(name, meant(kind, value)))
            else:
                self.settings[name] = kind.typed(name, meant(kind, value))
        except InvalidRequest as error:
            self.problems += renamed(error, self.names).problems

    def take_pictures(self, given: dict[str, Any]) -> None:
        """Take `image` (or `images`) and `mask` as OpenAI's edits have them: painted anew is what is transparent."""
        name = "images" if "images" in given else "image"
        images = given.pop(name, None)
        listed = images if isinstance(images, list) else [images]
        if images is None or not listed:
            self.refuse(name, "nothing", "one picture")
        elif len(listed) > 1:
            self.refuse(name, f"{len(listed)} pictures", "one picture: this model starts from one")
        elif "init_image" not in self.model.family.parameters:
            self.refuse(name, f"a picture for {self.model.name}", "a model that starts from one")
        else:
            self.take("init_image", listed[0], name)
        if (mask := given.pop("mask", None)) is not None:
            try:
                self.settings["mask"] = openai_mask(picture("mask", mask))
            except InvalidRequest as error:
                self.problems += error.problems

    def size(self) -> None:
        """Take `size` apart into `width` and `height`."""
        size = self.fields.get("size", "auto")
        if size == "auto":
            return
        both = [side for side in ("width", "height") if side in self.settings]
        found = SIZE.fullmatch(size)
        if both:
            self.refuse("size", f"{size} beside {both[0]}", "size, or width and height")
        elif found is None:
            self.refuse("size", shown(size), "auto, or WIDTHxHEIGHT as 1024x768")
        else:
            for side, value in zip(("width", "height"), found.groups(), strict=True):
                self.settings[side] = int(value)
                self.names[side] = "size"

    def quality(self) -> None:
        """Turn `quality` into steps: those of the model, or of the preset, times `QUALITY`."""
        share = QUALITY[self.fields.get("quality", "auto")]
        if share == 1:
            return
        steps = [name for name in self.model.family.parameters if name.endswith("num_inference_steps")]
        for name in steps:
            if name in self.settings:
                self.refuse("quality", f"{self.fields['quality']} beside {name}", "quality, or steps")
                return
        own = {name: value for name, value in {**self.model.settings, **self.settings}.items() if name != "prompt"}
        for name in _pictures(self.model, own):
            del own[name]
        reading = self.model.family.settings.read(own, self.model.card)
        for name in steps:
            most = cast(Integer, reading.kind(name)).high
            if name in reading.values:  # it is wrong in the preset, else, which is told
                self.settings[name] = max(1, min(round(reading.values[name] * share), cast(int, most)))
                self.names[name] = "quality"


def meant(kind: Kind, value: Any) -> Any:
    """Give what a form's text means to a kind; what is no text stands as it is."""
    if isinstance(kind, Integers) and isinstance(value, list) and all(isinstance(one, str) for one in value):
        value = ",".join(value)  # SDKs write a list as a field for each
    if not isinstance(value, str):
        return value
    text = value.strip()
    if isinstance(kind, Flag):
        return {"true": True, "false": False}.get(text.lower(), value)
    if isinstance(kind, Integers) and re.fullmatch(r"\d{1,9}(,\s*\d{1,9}){1,3}", text):
        return tuple(map(int, text.split(",")))
    if isinstance(kind, Integer) and re.fullmatch(r"[+-]?\d{1,20}", text):
        return int(text)
    if isinstance(kind, Number) and re.fullmatch(r"[+-]?\d{1,40}(\.\d{1,40})?(e[+-]?\d{1,3})?", text, re.IGNORECASE):
        return float(text)
    return value
