"""JSON that strangers may have written, checked against the types that Python code declares."""

from __future__ import annotations

import json
import math
import os
import stat
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints, is_typeddict

MAX_BYTES = 8 << 20
WORDS = {
    str: "printable text",
    int: "a whole number from 0 on",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


class SchemaError(ValueError):
    """Names the field, what was given and what is legal."""


def read(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file of at most MAX_BYTES bytes, or no JSON.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # opening a fifo would wait
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("not a regular file")
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    try:
        return json.loads(text, parse_constant=_not_a_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check(value: Any, declared: Any, field: str = "") -> None:
    """Check what `json` read against a type: a dataclass, a TypedDict (which may have more), or what they are made of.

    Raises:
        SchemaError: the first difference.
    """
    origin, inner = get_origin(declared), get_args(declared)
    if declared is Any:
        return
    if origin is Literal:
        if not any(value == legal and type(value) is type(legal) for legal in inner):
            _refuse(field, value, ", ".join(map(str, inner)))
    elif origin in (Union, types.UnionType):
        _check_union(value, inner, field)
    elif is_dataclass(declared) or is_typeddict(declared):
        _check_fields(value, declared, field)
    elif origin is not None and issubclass(origin, Mapping):
        _check_mapping(value, inner, field)
    elif origin is not None and issubclass(origin, Sequence):
        if not isinstance(value, list):
            _refuse(field, value, "a list")
        for index, one in enumerate(value):
            check(one, inner[0], f"{field}[{index}]")
    elif not _is_plain(value, declared):
        _refuse(field, value, WORDS[declared])


def _is_plain(value: Any, declared: type) -> bool:
    if declared is str:
        return isinstance(value, str) and value.isprintable()
    if declared is int:
        return type(value) is int and 0 <= value < 2**63
    if declared is float:
        return type(value) in (float, int) and abs(value) < math.inf
    return type(value) is declared


def _check_union(value: Any, choices: Sequence[Any], field: str) -> None:
    plain = [choice for choice in choices if choice in WORDS]
    if any(_is_plain(value, choice) for choice in plain):
        return
    if len(plain) == len(choices):
        _refuse(field, value, " or ".join(WORDS[choice] for choice in plain))
    check(value, next(choice for choice in choices if choice not in plain), field)


def _check_fields(value: Any, declared: Any, field: str) -> None:
    if not isinstance(value, dict):
        _refuse(field, value, "an object")
    hints, required = _declared(declared)
    if is_dataclass(declared):
        for name in sorted(value.keys() - hints.keys()):
            raise SchemaError(f"{_join(field, name)}: unknown to this version of Triptych")
    for name in sorted(required - value.keys()):
        raise SchemaError(f"{_join(field, name)}: missing")
    for name in value.keys() & hints.keys():
        check(value[name], hints[name], _join(field, name))


@cache
def _declared(declared: Any) -> tuple[Mapping[str, Any], frozenset[str]]:
    """The types of all fields, and the names of those that must be there."""
    hints = get_type_hints(declared)
    if is_typeddict(declared):
        return hints, declared.__required_keys__
    return {one.name: hints[one.name] for one in fields(declared)}, frozenset(
        one.name for one in fields(declared) if one.default is MISSING and one.default_factory is MISSING
    )


def _check_mapping(value: Any, inner: Sequence[Any], field: str) -> None:
    if not isinstance(value, dict):
        _refuse(field, value, "an object")
    for key, one in value.items():
        if not key.isprintable():
            _refuse(field, key, "printable names")
        check(one, inner[1], _join(field, key))


def _join(field: str, name: str) -> str:
    shown = name if name.isprintable() else ascii(name)
    return f"{field}.{shown}" if field else shown


def _refuse(field: str, value: Any, legal: str) -> NoReturn:
    given = ascii(value) if isinstance(value, str) else json.dumps(value)
    raise SchemaError(f"{field or 'the document'}: {given[:80]} given; legal: {legal}")


def _not_a_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
