"""A run beside an earlier one: ratios should not depend on the day."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.errors import invalid

# Two runs on one machine may differ by so much.
SHARE = 0.15


@dataclass(frozen=True)
class Change:
    """A ratio then and now."""

    name: str
    then: float
    now: float

    @property
    def agrees(self) -> bool:
        """Whether they differ by no more than the share, of the smaller."""
        return max(self.then, self.now) <= (1 + SHARE) * min(self.then, self.now)

    @property
    def line(self) -> str:
        """`AGAINST name then now`, and a word where they differ."""
        return f"AGAINST {self.name} {self.then:.3f} {self.now:.3f}" + ("" if self.agrees else " differs")


def load(path: Path) -> Mapping[str, float]:
    """The ratios of an earlier `report.json`, by name.

    Raises:
        InvalidRequest: it is no report of this benchmark.
    """
    try:
        document: Any = json.loads(path.read_text("utf-8"))
        return {ratio["name"]: float(ratio["value"]) for ratio in document["ratios"]}
    except (ValueError, KeyError, TypeError) as error:
        raise invalid("--against", f"{path} ({error!r})", "the report.json of an earlier run") from None


def changes(then: Mapping[str, float], now: Mapping[str, float]) -> Iterator[Change]:
    """The ratios that both runs have, in the order of this one."""
    return (Change(name, then[name], value) for name, value in now.items() if name in then)
