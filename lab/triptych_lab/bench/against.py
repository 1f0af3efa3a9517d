"""Compare a run with an earlier one: ratios should not depend on the day."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.errors import invalid

# Two runs on one machine may differ by this share.
SHARE = 0.15


@dataclass(frozen=True)
class Change:
    """A ratio in an earlier run and in this one."""

    name: str
    then: float
    now: float

    @property
    def agrees(self) -> bool:
        """Whether the larger is at most 15% above the smaller."""
        return max(self.then, self.now) <= (1 + SHARE) * min(self.then, self.now)

    @property
    def line(self) -> str:
        """The line that is printed: `AGAINST name then now`, and `differs` if they do."""
        return f"AGAINST {self.name} {self.then:.3f} {self.now:.3f}" + ("" if self.agrees else " differs")


def load(path: Path) -> Mapping[str, float]:
    """Read the ratios of an earlier `report.json`, by name.

    Raises:
        InvalidRequest: the file is not a report of this benchmark.
    """
    try:
        document: Any = json.loads(path.read_text("utf-8"))
        return {ratio["name"]: float(ratio["value"]) for ratio in document["ratios"]}
    except (ValueError, KeyError, TypeError) as error:
        raise invalid("--against", f"{path} ({error!r})", "the report.json of an earlier run") from None


def changes(then: Mapping[str, float], now: Mapping[str, float]) -> Iterator[Change]:
    """Yield the ratios that both runs have, in the order of this one."""
    return (Change(name, then[name], value) for name, value in now.items() if name in then)
