"""X/Y grids: one setting swept along each axis, everything else, the seed too, the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from triptych.errors import InvalidRequest, invalid
from triptych_contract.parameters import Choice, Integer, LongInteger, Number, Side

from .fitting import plain
from .forms import PICTURES, Form

MAX_CELLS = 64
MAX_VALUES = 16
# "4-8" with a step as "4-8 (+2)", or a number of values as "4-8 [3]": A1111's way of writing ranges.
RANGE = re.compile(
    r"(?P<first>\d+(?:\.\d+)?)\s*-\s*(?P<last>\d+(?:\.\d+)?)\s*"
    r"(?:\(\s*\+\s*(?P<step>\d+(?:\.\d+)?)\s*\)|\[\s*(?P<count>\d{1,3})\s*\])?"
)


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes along one axis."""

    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Plan:
    """A grid: `cells` are requests, row by row; without `y` there is one row."""

    x: Axis
    y: Axis | None
    cells: tuple[Mapping[str, Any], ...]

    @property
    def columns(self) -> int:
        return len(self.x.values)

    def label(self, index: int) -> str:
        """Tell what sets a cell apart, as `guidance_scale 4, sampler euler`."""
        row, column = divmod(index, self.columns)
        axes = [(self.x, column)] + ([(self.y, row)] if self.y else [])
        return ", ".join(f"{axis.name} {_words(axis.values[at])}" for axis, at in axes)


def _words(value: Any) -> str:
    return plain(value) if isinstance(value, float) else str(value)


def sweepable(form: Form) -> list[str]:
    """Name the settings that an axis can have: numbers, then choices, then seeds."""
    kinds = {name: one.kind for name, one in form.parameters.items() if one.needs not in PICTURES}
    able = [
        name for name, kind in kinds.items() if isinstance(kind, (Choice, Integer, Number)) and type(kind) is not Side
    ]
    return sorted(able, key=lambda name: isinstance(kinds[name], Choice) + 2 * isinstance(kinds[name], LongInteger))


def axis(form: Form, name: str, text: str) -> Axis:
    """Read an axis from what somebody typed: values with commas between them; numbers also as `4-8`, `4-8 (+2)`, `4-8 [3]`.

    Raises:
        InvalidRequest: no such setting, no values, too many, or one that is no number.
    """
    if name not in sweepable(form):
        raise invalid("axis", repr(name), ", ".join(sweepable(form)))
    parts = [part.strip() for part in text.split(",") if part.strip()]
    kind = form.parameters[name].kind
    whole = isinstance(kind, Integer)
    values = parts if isinstance(kind, Choice) else [value for part in parts for value in _numbers(name, part, whole)]
    distinct = tuple(dict.fromkeys(values))
    if not 1 <= len(distinct) <= MAX_VALUES:
        raise invalid(name, f"{len(distinct)} values", f"1 … {MAX_VALUES} values, as 4, 6, 8 or 4-8 (+2)")
    return Axis(name, distinct)


def plan(form: Form, values: Mapping[str, Any], x: Axis, y: Axis | None) -> tuple[Plan, list[InvalidRequest]]:
    """Make the grid, and list all that is wrong with its cells, each problem once.

    Args:
        form: what the chosen model takes.
        values: the page's fields, with a seed: without one each cell would have another.

    Raises:
        InvalidRequest: both axes are the same, or more than 64 cells.
    """
    if y and y.name == x.name:
        raise invalid("axis", f"{x.name} twice", "two different settings")
    count = len(x.values) * len(y.values if y else (None,))
    if count > MAX_CELLS:
        raise invalid("grid", f"{count} pictures", f"at most {MAX_CELLS}")
    checked = [form.check({**values, **cell}) for cell in _cells(x, y)]
    problems = {str(problem): problem for _, found in checked for problem in found}
    return Plan(x, y, tuple(request for request, _ in checked)), list(problems.values())


def _cells(x: Axis, y: Axis | None) -> list[dict[str, Any]]:
    rows: Sequence[dict[str, Any]] = [{y.name: value} for value in y.values] if y else [{}]
    return [{**row, x.name: value} for row in rows for value in x.values]


def _numbers(name: str, text: str, whole: bool) -> list[int | float]:
    if match := RANGE.fullmatch(text):
        return [_number(name, str(value), whole) for value in _spread(name, match, whole)]
    return [_number(name, text, whole)]


def _spread(name: str, match: re.Match[str], whole: bool) -> list[Decimal]:
    # Decimal, so that 0.1 + 0.2 is what people mean by it.
    first, last = Decimal(match["first"]), Decimal(match["last"])
    if match["count"]:
        count = int(match["count"])
        if not 2 <= count <= MAX_VALUES:
            raise invalid(name, f"{count} values", f"2 … {MAX_VALUES}")
        spread = [first + (last - first) * k / (count - 1) for k in range(count)]
        return [value.to_integral_value() if whole else round(value, 6) for value in spread]
    step = Decimal(match["step"] or 1)
    if step == 0 or last < first or (last - first) / step >= MAX_VALUES:
        raise invalid(name, match[0], f"a range upwards of at most {MAX_VALUES} values")
    return [first + step * k for k in range(int((last - first) / step) + 1)]


def _number(name: str, text: str, whole: bool) -> int | float:
    if not re.fullmatch(r"\d{1,19}(\.\d{1,9})?", text):
        raise invalid(name, repr(text[:40]), "numbers, as 4, 6, 8 or 4-8 (+2)")
    value = float(text)
    return int(Decimal(text)) if whole and value == int(value) else value
