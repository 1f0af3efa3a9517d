"""Checks of single values: each gives the value, or an InvalidRequest that names the field, what was given and what is legal."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from .errors import InvalidRequest


def text(field: str, value: bytes, limit: int, *, blank_allowed: bool = True) -> str:
    """UTF-8 of at most `limit` bytes, without control characters but tabs and line ends."""
    if len(value) > limit:
        raise InvalidRequest(field, f"{len(value)} bytes", f"at most {limit} bytes of UTF-8")
    try:
        decoded = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(field, f"byte 0x{value[error.start]:02x} at {error.start}", "UTF-8 text") from None
    for position, character in enumerate(decoded):
        if (ord(character) < 32 and character not in "\t\r\n") or ord(character) == 127:
            raise InvalidRequest(
                field, f"control character U+{ord(character):04X} at {position}", "text, tabs and line ends"
            )
    if not blank_allowed and not decoded.strip():
        raise InvalidRequest(field, "a blank text" if decoded else "an empty text", "a text that is not blank")
    return decoded


def integer(field: str, value: int, low: int, high: int) -> int:
    """A whole number in low … high."""
    if not low <= value <= high:
        raise InvalidRequest(field, value, f"{low} … {high}")
    return int(value)


def number(field: str, value: float, low: float, high: float) -> float:
    """A finite number in low … high."""
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidRequest(field, value, f"{low:g} … {high:g}")
    return float(value)


def between(field: str, value: float, low: float, high: float) -> float:
    """A finite number between low and high, neither of them."""
    if not (math.isfinite(value) and low < value < high):
        raise InvalidRequest(field, value, f"over {low:g}, under {high:g}")
    return float(value)


def pair(field: str, value: Sequence[int], low: int, high: int) -> tuple[int, int]:
    """Two whole numbers, each in low … high."""
    first, second = value
    return integer(field, first, low, high), integer(field, second, low, high)


def choice(field: str, value: bytes, legal: Collection[str]) -> str:
    """One of some names."""
    name = value.decode("utf-8", "replace")
    if name not in legal:
        raise InvalidRequest(field, repr(name), ", ".join(legal))
    return name
