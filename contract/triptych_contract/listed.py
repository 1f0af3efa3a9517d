"""Inputs that are lists of things with names, as JSON; for people there is a shorter text as well."""

from __future__ import annotations

import json
import numbers
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .errors import invalid, shown
from .parameters import Kind, Text

MAX_NAME_BYTES = 200
NAME = Text(MAX_NAME_BYTES, blank=False)


@dataclass(frozen=True)
class Listed(Kind):
    """A list of NamedTuples, each an object of JSON with a `name`; or as text, with commas between them.

    Args:
        most: how many there may be.
        scales: the least and the largest scale of one.
        things: what they are called.
        form: how a list is written.
    """

    datatype = "BYTES"
    python = "Sequence[Mapping[str, Any]] | str"
    most: ClassVar[int]
    scales: ClassVar[tuple[float, float]]
    things: ClassVar[str]
    form: ClassVar[str]

    @abstractmethod
    def one(self, field: str, name: str, value: Mapping[str, Any], place: int, *, documented: bool) -> Any:
        """Give the thing at a place of the list, in its type; `documented` where one of ours wrote it.

        Raises:
            InvalidRequest: it is something else.
        """

    @abstractmethod
    def named(self, field: str, text: str) -> Mapping[str, Any]:
        """Read the short text of one.

        Raises:
            InvalidRequest: there is no name.
        """

    def typed(self, field: str, value: Any) -> tuple[Any, ...]:
        documented = not isinstance(value, (str, bytes))
        if documented and not isinstance(value, Sequence):
            raise invalid(field, shown(value), self.form)
        found = value if documented else self._read(field, value)
        return tuple(self._one(field, one, place, documented=documented) for place, one in enumerate(found))

    def _read(self, field: str, value: str | bytes) -> Iterator[Any]:
        text = Text(self.most * 2 * MAX_NAME_BYTES).typed(field, value).strip()
        if not text.startswith("["):
            yield from (self.named(field, one) for one in text.split(",") if one.strip())
            return
        try:
            yield from json.loads(text)
        except (ValueError, RecursionError):
            raise invalid(field, shown(text), self.form) from None

    def _one(self, field: str, value: Any, place: int, *, documented: bool) -> Any:
        if hasattr(value, "_asdict"):
            value = value._asdict()
        if not isinstance(value, Mapping) or "name" not in value:
            raise invalid(field, shown(value), self.form)
        return self.one(field, NAME.typed(field, value["name"]), value, place, documented=documented)

    def check(self, field: str, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(value) > self.most:
            raise invalid(field, f"{len(value)} {self.things}", f"at most {self.most}")
        for one in value:
            NAME.check(field, one.name)
        return value

    def sent(self, value: tuple[Any, ...]) -> str:
        return json.dumps([one._asdict() for one in value])


def number(field: str, name: str, what: str, value: Any) -> float:
    """Give a number of the thing of this name.

    Raises:
        InvalidRequest: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise invalid(field, f"{name} with {what} {shown(value)}", f"a number as {what}")
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        raise invalid(field, f"{name} with a {what} too large", f"a number as {what}") from None
