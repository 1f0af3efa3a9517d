"""X/Y grids: one setting swept along each axis, everything else, the seed too, the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from triptych.errors import InvalidRequest, invalid

from .checking import check
from .fitting import plain
from .forms import Form

MAX_CELLS = 64
MAX_VALUES = 16
# "4-8" with a step as "4-8 (+2)", or a number of values as "4-8 [3]": A1111's way of writing ranges.
RANGE = re.compile(
    r"(?P<first>\d+(?:\.\d+)?)\s*-\s*(?P<last>\d+(?:\.\d+)?)\s*"
    r"(?:\(\s*\+\s*(?P<step>\d+(?:\.\d+)?)\s*\)|\[\s*(?P<count>\d{1,3})\s*\])?"
)
TEXTS = ("sampler", "schedule")


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
        """What sets a cell apart, as `guidance_scale 4, sampler euler`."""
        row, column = divmod(index, self.columns)
        axes = [(self.x, column)] + ([(self.y, row)] if self.y else [])
        return ", ".join(f"{axis.name} {_words(axis.values[at])}" for axis, at in axes)


def _words(value: Any) -> str:
    return plain(value) if isinstance(value, float) else str(value)


def sweepable(form: Form) -> list[str]:
    """The settings that an axis can have."""
    sampling = [*TEXTS] if form.samplers else []
    return [*(name for name in form.numbers if name != "strength"), *sampling, "seed"]


def axis(form: Form, name: str, text: str) -> Axis:
    """An axis from what somebody typed: values with commas between them; numbers also as `4-8`, `4-8 (+2)`, `4-8 [3]`.

    Raises:
        InvalidRequest: no such setting, no values, too many, or one that is no number.
    """
    if name not in sweepable(form):
        raise invalid("axis", repr(name), ", ".join(sweepable(form)))
    parts = [part.strip() for part in text.split(",") if part.strip()]
    values = parts if name in TEXTS else [value for part in parts for value in _numbers(form, name, part)]
    distinct = tuple(dict.fromkeys(values))
    if not 1 <= len(distinct) <= MAX_VALUES:
        raise invalid(name, f"{len(distinct)} values", f"1 … {MAX_VALUES} values, as 4, 6, 8 or 4-8 (+2)")
    return Axis(name, distinct)


def plan(form: Form, values: Mapping[str, Any], x: Axis, y: Axis | None) -> tuple[Plan, list[InvalidRequest]]:
    """The grid, and all that is wrong with its cells, each problem once.

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
    checked = [check(form, _typed({**values, **cell})) for cell in _cells(x, y)]
    problems = {str(problem): problem for _, found in checked for problem in found}
    return Plan(x, y, tuple(request for request, _ in checked)), list(problems.values())


def _cells(x: Axis, y: Axis | None) -> list[dict[str, Any]]:
    rows: Sequence[dict[str, Any]] = [{y.name: value} for value in y.values] if y else [{}]
    return [{**row, x.name: value} for row in rows for value in x.values]


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    """A seed is text in the page's fields, so that it keeps all its digits."""
    return {**values, "seed": str(values["seed"])} if "seed" in values else values


def _numbers(form: Form, name: str, text: str) -> list[int | float]:
    whole = name == "seed" or form.numbers[name].whole
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
