"""Controls (ControlNets) of a request: which, the picture that each follows, how strongly, and in which of the steps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .errors import invalid, shown
from .listed import Listed, number

MAX_CONTROLS = 4
MAX_SCALE = 4.0
# What an export may call one: it is a folder's name as well.
LEGAL_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_SHORT = re.compile(r"(?P<name>[^:]+)(?::(?P<scale>[^:]*))?(?::(?P<start>[^:-]*)-(?P<end>[^:-]*))?")


class Control(NamedTuple):
    """One control of a request.

    Args:
        name: as the model was exported with it.
        image: which of the request's control pictures, from 0 on.
        scale: what is multiplied with what it adds.
        start, end: the shares of the steps between which it works.
    """

    name: str
    image: int
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __str__(self) -> str:
        share = "" if (self.start, self.end) == (0.0, 1.0) else f":{self.start:g}-{self.end:g}"
        return f"{self.name}:{self.scale:g}{share}"


@dataclass(frozen=True)
class Controls(Listed):
    """A list of controls, as JSON, whose effects add up.

    For people there is a shorter text as well: `NAME`, `NAME:0.8`, `NAME:0.8:0-0.5`, several with commas between them, each with
    the picture at its own place.
    """

    most = MAX_CONTROLS
    scales = (0.0, MAX_SCALE)
    things = "controls"
    form = '[{"name": "edges", "image": 0, "scale": 0.8, "start": 0, "end": 0.5}, …], or as text edges:0.8:0-0.5, depth'

    def one(self, field: str, name: str, value: Mapping[str, Any], place: int, *, documented: bool) -> Control:  # noqa: ARG002
        if set(value) - {*Control._fields}:
            raise invalid(field, shown(dict(value)), self.form)
        image = value.get("image", place)
        if type(image) is not int or image < 0:
            raise invalid(field, f"{name} with image {shown(image)}", "a place in control_images, from 0 on")
        numbers = {what: value.get(what, Control._field_defaults[what]) for what in ("scale", "start", "end")}
        return Control(name, image, **{what: number(field, name, what, each) for what, each in numbers.items()})

    def named(self, field: str, text: str) -> Mapping[str, Any]:
        return named(field, text)

    def check(self, field: str, value: tuple[Control, ...]) -> tuple[Control, ...]:
        for one in super().check(field, value):
            if not 0 <= one.scale <= MAX_SCALE:
                raise invalid(field, f"{one.name} with scale {one.scale:g}", f"a scale of 0 … {MAX_SCALE:g}")
            if not 0 <= one.start < one.end <= 1:
                raise invalid(field, f"{one.name} from {one.start:g} to {one.end:g}", "0 ≤ start < end ≤ 1")
        return value

    @property
    def legal(self) -> str:
        share = "a start and an end of 0 … 1, else the whole way"
        return f"at most {MAX_CONTROLS}, each with a scale of 0 … {MAX_SCALE:g}, else 1, and {share}"


def named(field: str, text: str) -> dict[str, Any]:
    """Read `NAME`, `NAME:0.8` or `NAME:0.8:0-0.5`.

    Raises:
        InvalidRequest: it is none of these.
    """
    try:
        found = _SHORT.fullmatch(text.strip())
        given = {what: one.strip() for what, one in (found.groupdict() if found else {}).items() if one is not None}
        return {"name": given.pop("name"), **{what: float(one) for what, one in given.items()}}
    except (KeyError, ValueError):
        raise invalid(field, shown(text), "NAME, NAME:0.8 or NAME:0.8:0-0.5") from None
