"""Adapters (LoRAs) of a request: which, and how strongly. What a name stands for, the server's folder decides."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .errors import invalid, shown
from .parameters import Kind, Text

MAX_ADAPTERS = 8
MAX_SCALE = 4.0
MAX_NAME_BYTES = 200
FORM = '[{"name": "ink", "scale": 0.8}, …], or as text ink:0.8, fog'
NAME = Text(MAX_NAME_BYTES, blank=False)


class Adapter(NamedTuple):
    """One adapter of a request: how strongly it works, and the SHA-256 in hex of its file once a server has looked it up."""

    name: str
    scale: float = 1.0
    sha256: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.scale:g}"


@dataclass(frozen=True)
class Adapters(Kind):
    """A list of adapters, as JSON, whose effects add up.

    For people there is a shorter text as well: `NAME`, `NAME:0.8`, several with commas between them.
    """

    datatype = "BYTES"
    python = "Sequence[Mapping[str, Any]] | str"

    def typed(self, field: str, value: Any) -> tuple[Adapter, ...]:
        if isinstance(value, (str, bytes)):
            return tuple(self._read(field, value))
        if not isinstance(value, Sequence):
            raise invalid(field, shown(value), FORM)
        return tuple(self._adapter(field, one, "sha256") for one in value)

    def _read(self, field: str, value: str | bytes) -> Iterator[Adapter]:
        text = Text(MAX_ADAPTERS * 2 * MAX_NAME_BYTES).typed(field, value).strip()
        if not text.startswith("["):
            yield from (named(field, one) for one in text.split(",") if one.strip())
            return
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise invalid(field, shown(text), FORM) from None
        yield from (self._adapter(field, one) for one in found)

    def _adapter(self, field: str, value: Any, *more: str) -> Adapter:
        if more and isinstance(value, (list, tuple)):  # as JSON has an `Adapter`
            value = dict(zip(Adapter._fields, value, strict=False))
        if not isinstance(value, Mapping) or "name" not in value or set(value) - {"name", "scale", *more}:
            raise invalid(field, shown(value), FORM)
        name, scale = NAME.typed(field, value["name"]), value.get("scale", 1.0)
        if isinstance(scale, bool) or not isinstance(scale, numbers.Real):
            raise invalid(field, f"{name} with scale {shown(scale)}", "a number as scale")
        try:
            return Adapter(name, float(scale), str(value.get("sha256", "")))
        except OverflowError:  # a whole number of hundreds of digits
            raise invalid(field, f"{name} with a scale too large", FORM) from None

    def check(self, field: str, value: tuple[Adapter, ...]) -> tuple[Adapter, ...]:
        if len(value) > MAX_ADAPTERS:
            raise invalid(field, f"{len(value)} adapters", f"at most {MAX_ADAPTERS}")
        for one in value:
            NAME.check(field, one.name)
            if not abs(one.scale) <= MAX_SCALE or math.isnan(one.scale):
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
