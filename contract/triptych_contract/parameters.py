"""Declarations of what a request may ask for: each parameter once, everything else is derived from it.

A parameter is a field of a family's `Settings`:

    guidance_rescale: float = parameter(Number(0, 1), "How much contrast is taken back.", default=0.0)

Its kind says how it travels to Triton, which values are legal and how those are told. Limits and defaults that depend on the
model are read off its card (`OfModel`).
"""

from __future__ import annotations

import math
import numbers
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

from .errors import invalid, shown

PARAMETER = "parameter"
# What a group of parameters is called, in the order in which people are asked.
GROUPS = {
    "picture": "Picture",
    "sampling": "Sampling",
    "start": "Start from a picture",
    "control": "Follow pictures",
    "refiner": "Refiner",
    "stable cascade": "Stable Cascade",
    "output": "Output",
}
NONE = "none: this model has none"
COUNTED = {2: "two", 4: "four"}
MAX_INT32, MAX_INT64 = 2**31 - 1, 2**63 - 1


class OfModel(NamedTuple):
    """A limit or a default that is the model's: how it is read off the card, and what it is called in documents."""

    read: Callable[[Any], Any]
    words: str = "the model's"


class Picture(NamedTuple):
    """What settings hold of a picture: the file's SHA-256 in hex, and its size in pixels as it is looked at."""

    sha256: str
    height: int
    width: int


@dataclass(frozen=True)
class Kind(ABC):
    """How a value travels and what is legal. `datatype` is Triton's, `count` how many of them a tensor holds."""

    datatype: ClassVar[str]
    python: ClassVar[str]  # what an editor is told it takes
    count: ClassVar[int] = 1  # -1 for any number

    @abstractmethod
    def typed(self, field: str, value: Any) -> Any:
        """Give the value in its own type, whatever its range.

        Raises:
            InvalidRequest: it cannot be sent as such.
        """

    def check(self, _field: str, value: Any) -> Any:
        """Give the typed value, if it is legal; its canonical name where it has several.

        Raises:
            InvalidRequest: it is out of range.
        """
        return value

    def sent(self, value: Any) -> Any:
        """Give the typed value as a tensor holds it: text, bytes, a number, or a tuple of `count` of them."""
        return value

    def of(self, card: Any) -> Kind:
        """Give the kind with the limits that this model's card sets."""
        limits = {name: value.read(card) for name, value in vars(self).items() if isinstance(value, OfModel)}
        return replace(self, **limits) if limits else self

    @property
    @abstractmethod
    def legal(self) -> str:
        """What is legal, in words."""


@dataclass(frozen=True)
class Text(Kind):
    """UTF-8 of at most `max_bytes` bytes without control characters but tabs and line ends."""

    datatype = "BYTES"
    python = "str"
    max_bytes: int
    blank: bool = True

    def typed(self, field: str, value: Any) -> str:
        if isinstance(value, bytes):
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError as error:
                raise invalid(field, f"byte 0x{value[error.start]:02x} at {error.start}", "UTF-8 text") from None
        if not isinstance(value, str):
            raise invalid(field, shown(value), "a text")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise invalid(field, f"a character that is not Unicode at {error.start}", "UTF-8 text") from None
        return value

    def check(self, field: str, value: str) -> str:
        if (size := len(value.encode("utf-8"))) > self.max_bytes:
            raise invalid(field, f"{size} bytes", f"at most {self.max_bytes} bytes of UTF-8")
        for position, character in enumerate(value):
            if is_control(character):
                words = f"control character U+{ord(character):04X} at {position}"
                raise invalid(field, words, "text, tabs and line ends")
        if not self.blank and not value.strip():
            raise invalid(field, "a blank text" if value else "an empty text", "a text that is not blank")
        return value

    @property
    def legal(self) -> str:
        blank = "" if self.blank else "not blank, "
        return f"UTF-8, {blank}at most {self.max_bytes:,} bytes, no control characters but tab and line ends"


def is_control(character: str) -> bool:
    """Tell whether a terminal could take a character for a command: C0 without tab and line ends, DEL, C1."""
    code = ord(character)
    return (code < 32 and character not in "\t\r\n") or 127 <= code < 160


@dataclass(frozen=True)
class Choice(Kind):
    """One of some names. A mapping leads from every name, in lower case, to the one that is meant.

    `titles` are what people call them, where that is something else.
    """

    datatype = "BYTES"
    python = "str"
    names: Collection[str] | OfModel
    aliases: Mapping[str, str] | OfModel = field(default_factory=dict)
    titles: Mapping[str, str] | OfModel = field(default_factory=dict)

    def typed(self, field: str, value: Any) -> str:
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if not isinstance(value, str):
            raise invalid(field, shown(value), "a text")
        return value

    def check(self, field: str, value: str) -> str:
        assert not isinstance(self.names, OfModel)  # noqa: S101 - `of` was called
        assert not isinstance(self.aliases, OfModel)  # noqa: S101
        name = self.aliases.get(value.lower(), value)
        if name not in self.names:
            raise invalid(field, shown(value), ", ".join(self.names) or NONE)
        return name

    @property
    def legal(self) -> str:
        if isinstance(self.names, OfModel):
            return self.names.words
        return ", ".join(f"`{name}`" for name in self.names) or NONE


@dataclass(frozen=True)
class Integer(Kind):
    """A whole number in low … high."""

    datatype = "INT32"
    python = "int"
    low: int
    high: int | OfModel
    bits: ClassVar[int] = 31

    def typed(self, field: str, value: Any) -> int:
        number = _real(field, value)
        whole = int(number) if isinstance(number, numbers.Integral) or math.isfinite(number) else None
        if whole is None or number != whole or not -(2**self.bits) <= whole < 2**self.bits:
            raise invalid(field, value, f"a whole number below 2^{self.bits}")
        return whole

    def check(self, field: str, value: int) -> int:
        if not self.low <= value <= self._high:
            raise invalid(field, value, self.legal)
        return value

    @property
    def _high(self) -> int:
        assert not isinstance(self.high, OfModel)  # noqa: S101 - `of` was called
        return self.high

    @property
    def legal(self) -> str:
        return f"{self.low} … {_told(self.high)}"


@dataclass(frozen=True)
class LongInteger(Integer):
    """A whole number of 64 bits."""

    datatype = "INT64"
    bits = 63


@dataclass(frozen=True)
class Side(Integer):
    """A height or width in pixels; which are legal hangs on the model and on what else is asked (`Settings.sides`)."""

    low: int = 0
    high: int = MAX_INT32

    def check(self, _field: str, value: int) -> int:
        return value

    @property
    def legal(self) -> str:
        return "a size of the model's; an error names the nearest"


@dataclass(frozen=True)
class Number(Kind):
    """A finite number in low … high; where `between`, neither of them."""

    datatype = "FP32"
    python = "float"
    low: float
    high: float
    between: bool = False

    def typed(self, field: str, value: Any) -> float:
        number = _real(field, value)
        try:
            struct.pack("<f", number)
        except (OverflowError, struct.error):
            raise invalid(field, value, "a number that 32 bits can hold") from None
        return float(number)

    def check(self, field: str, value: float) -> float:
        inside = self.low < value < self.high if self.between else self.low <= value <= self.high
        if not inside:  # NaN is inside of nothing
            raise invalid(field, repr(value).removesuffix(".0"), self.legal)
        return value

    @property
    def legal(self) -> str:
        if self.between:
            return f"over {self.low:g}, under {self.high:g}"
        return f"{self.low:g} … {self.high:g}"


@dataclass(frozen=True)
class Flag(Kind):
    """True or false."""

    datatype = "BOOL"
    python = "bool"

    def typed(self, field: str, value: Any) -> bool:
        flag = isinstance(value, int) or type(value).__name__ in ("bool_", "bool")  # NumPy's
        if not flag or value not in (0, 1):
            raise invalid(field, shown(value), "true or false")
        return bool(value)

    @property
    def legal(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Integers(Kind):
    """Several whole numbers, each in low … high; `of_what` names them."""

    datatype = "INT32"
    python = "Sequence[int]"
    low: int
    high: int
    of_what: tuple[str, ...]

    def typed(self, field: str, value: Any) -> tuple[int, ...]:
        value = value.tolist() if hasattr(value, "tolist") else value  # NumPy's arrays are no Sequence
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or len(value) != self.count:
            *first, last = self.of_what
            raise invalid(field, shown(value), f"{COUNTED[self.count]} whole numbers, {', '.join(first)} and {last}")
        one = Integer(self.low, self.high)
        return tuple(one.typed(field, each) for each in value)

    def check(self, field: str, value: tuple[int, ...]) -> tuple[int, ...]:
        one = Integer(self.low, self.high)
        return tuple(one.check(field, each) for each in value)

    @property
    def legal(self) -> str:
        return f"{', '.join(self.of_what)}, {self.low} … {self.high:,}"


@dataclass(frozen=True)
class Pair(Integers):
    """Two, as a size or a place."""

    count = 2


@dataclass(frozen=True)
class Edges(Integers):
    """One for each edge of a picture."""

    count = 4
    of_what: tuple[str, ...] = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class File(Kind):
    """A picture's file; settings hold what its header says of it."""

    datatype = "BYTES"
    python = "Picture"

    def typed(self, field: str, value: Any) -> Picture:
        if isinstance(value, Mapping):  # of a document
            value = Picture(**{name: value.get(name) for name in Picture._fields})  # type: ignore[arg-type] # checked below
        if not isinstance(value, Picture):
            raise invalid(field, f"a {type(value).__name__}", "what a picture's header says of it")
        sha256, side = Text(64), Integer(1, MAX_INT32)
        sides = (side.check(field, side.typed(field, each)) for each in value[1:])
        return Picture(sha256.check(field, sha256.typed(field, value.sha256)), *sides)

    @property
    def legal(self) -> str:
        return "a PNG, JPEG or WebP file, at most 32 MiB and 64 megapixels"


@dataclass(frozen=True)
class Files(Kind):
    """Files of one picture or several, at most `most`; settings hold what their headers say of them."""

    datatype = "BYTES"
    python = "Sequence[Picture]"
    count = -1
    most: int

    def typed(self, field: str, value: Any) -> tuple[Picture, ...]:
        if not isinstance(value, (list, tuple)):
            raise invalid(field, f"a {type(value).__name__}", "a list of pictures")
        return tuple(File().typed(field, one) for one in value)

    def check(self, field: str, value: tuple[Picture, ...]) -> tuple[Picture, ...]:
        self.few(field, value)
        return value

    def few(self, field: str, given: Sequence[Any]) -> Sequence[Any]:
        """Give what was given, pictures or their files, if those are not too many.

        Raises:
            InvalidRequest: they are, or there are none.
        """
        if not 1 <= len(given) <= self.most:
            raise invalid(field, f"{len(given)} pictures", f"1 … {self.most}")
        return given

    @property
    def legal(self) -> str:
        return f"1 … {self.most} files, each {File().legal}"


@dataclass(frozen=True)
class Parameter:
    """One input of a request.

    Args:
        name: the same on the wire, in the client, in settings and in receipts; diffusers' where it has one.
        kind: how it travels, what is legal.
        words: one sentence for people.
        default: what a request gets that leaves it out; None where that means something of its own, or where other
            settings decide (`default_words` then says what).
        note: what documents add to what is legal.
        needs: another input without which it means nothing.
        group: what it is about: a panel of `--help`, a part of the page's form.
        label: what the page calls it.
        main: whether the page shows it at once, not under "More settings".
        options: other spellings on the command line.
        a1111: its name in A1111's text.
        delivery: whether it is about the request only, and the picture does not depend on it.
    """

    name: str
    kind: Kind
    words: str
    default: Any = None
    default_words: str = ""
    note: str = ""
    needs: str = ""
    group: str = ""
    label: str = ""
    main: bool = False
    options: tuple[str, ...] = ()
    a1111: str = ""
    delivery: bool = False
    required: bool = False

    @property
    def told(self) -> str:
        """What it is, what is legal and what the default is, in sentences without links."""
        legal = self.kind.legal
        text = f"{self.words} {legal[0].upper()}{legal[1:]}. Default: {self.told_default}."
        return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)

    def of(self, card: Any) -> Parameter:
        """Give the parameter with the limits and the default of a model."""
        default = self.default.read(card) if isinstance(self.default, OfModel) else self.default
        return replace(self, kind=self.kind.of(card), default=default)

    @property
    def told_default(self) -> str:
        """What a request gets that leaves it out, in words."""
        if self.required:
            return "required"
        if self.default_words or self.default is None:
            return self.default_words or "none"
        return _told(self.default) if not isinstance(self.default, str) else f"`{self.default}`"


def parameter(kind: Kind, words: str, **declared: Any) -> Any:
    """Declare the field of a `Settings` as a parameter; the arguments are those of `Parameter`."""
    return field(metadata={PARAMETER: (kind, words, declared)})


def _real(field: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):  # NumPy's scalars are Real as well
        raise invalid(field, shown(value), "a number")
    return value


def _told(value: Any) -> str:
    if isinstance(value, OfModel):
        return value.words
    if isinstance(value, bool):
        return str(value).lower()
    return (
        ", ".join(map(str, value))
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
