"""Adapters (LoRAs) of a request: which, and how strongly. What a name stands for, the server's folder decides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .errors import invalid, shown
from .listed import Listed, number

MAX_ADAPTERS = 8
MAX_SCALE = 4.0


class Adapter(NamedTuple):
    """One adapter of a request: how strongly it works, and the SHA-256 in hex of its file once a server has looked it up."""

    name: str
    scale: float = 1.0
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.scale:g}"


@dataclass(frozen=True)
class Adapters(Listed):
    """A list of adapters, as JSON, whose effects add up.

    For people there is a shorter text as well: `NAME`, `NAME:0.8`, several with commas between them.
    """

    most = MAX_ADAPTERS
    scales = (-MAX_SCALE, MAX_SCALE)
    things = "adapters"
    form = '[{"name": "ink", "scale": 0.8}, …], or as text ink:0.8, fog'

    def one(self, field: str, name: str, value: Mapping[str, Any], place: int, *, documented: bool) -> Adapter:  # noqa: ARG002
        if set(value) - {"name", "scale", *(["sha256"] if documented else [])}:
            raise invalid(field, shown(dict(value)), self.form)
        scale = number(field, name, "scale", value.get("scale", 1.0))
        return Adapter(name, scale, str(value.get("sha256", "")))

    def named(self, field: str, text: str) -> Mapping[str, Any]:
        one = named(field, text)
        return {"name": one.name, "scale": one.scale}

    def check(self, field: str, value: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
        super().check(field, value)
        for one in value:
            if not abs(one.scale) <= MAX_SCALE:  # nor is NaN
                raise invalid(
                    field, f"{one.name} with scale {one.scale!r}", f"a scale of {-MAX_SCALE:g} … {MAX_SCALE:g}"
                )
        names = [one.name for one in value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise invalid(field, f"{twice} twice", "each adapter once")
        return value

    def sent(self, value: tuple[Adapter, ...]) -> str:
        return json.dumps([{"name": one.name, "scale": one.scale} for one in value])

    @property
    def legal(self) -> str:
        return f"at most {MAX_ADAPTERS}, each with a scale of {-MAX_SCALE:g} … {MAX_SCALE:g}, else 1"


def named(field: str, text: str) -> Adapter:
    """Read `NAME` or `NAME:0.8`.

    Raises:
        InvalidRequest: there is no name.
    """
    name, colon, scale = text.strip().rpartition(":")
    try:
        one = Adapter(name.strip(), float(scale)) if colon else Adapter(scale)
    except ValueError:
        one = Adapter(text.strip())  # a name with a colon
    if not one.name:
        raise invalid(field, shown(text), "NAME or NAME:0.8")
    return one
