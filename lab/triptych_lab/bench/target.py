"""A target of the benchmark: a name, two sides that are measured in turns, and the bounds of their ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from triptych_demo import demo_build

# Measures one side once; returns a figure for each of the target's ratios, by the ratio's name.
Side = Callable[[], Mapping[str, float]]


class Sides(NamedTuple):
    """The two sides of a target; a ratio is the first's figure ÷ the second's.

    `eased` are smaller lower bounds, by ratio, for a machine on which the model's own times allow no more.
    """

    first: Side
    second: Side
    eased: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Setting:
    """What a run of the benchmark was asked for.

    Attributes:
        weights: the folder in diffusers layout that the first build was exported from; the demo needs none.
        workload: a file of requests to measure latencies with, instead of random ones.
        load: the rate of random requests, as a share of what this machine can serve in full batches.
    """

    builds: tuple[Path, ...] = ()
    weights: Path | None = None
    repeats: int = 5
    quick: bool = False
    output: Path = Path("out/bench")
    workload: Path | None = None
    load: float = 0.7

    @property
    def build(self) -> Path:
        """The build that is compared with others: the first."""
        return self.builds[0] if self.builds else demo_build()

    def count(self, requests: int) -> int:
        """Return `requests`, or a few if the run is only to show that the benchmark works."""
        return min(requests, 3) if self.quick else requests


@dataclass(frozen=True)
class Bound:
    """Where a ratio should lie, both ends included; `aim` is what we hope for."""

    low: float = -math.inf
    high: float = math.inf
    aim: float | None = None

    def holds(self, value: float) -> bool:
        """Return whether `value` lies there; a NaN does not."""
        return self.low <= value <= self.high

    def eased(self, low: float) -> Bound:
        """Return a bound with this lower end, if that is smaller than its own."""
        return replace(self, low=min(self.low, low))

    def __str__(self) -> str:
        if self.high == math.inf:
            return f">={self.low:g}"
        return f"<={self.high:g}" if self.low == -math.inf else f"{self.low:g}..{self.high:g}"


def at_least(limit: float, aim: float | None = None) -> Bound:
    """Bound a ratio that is better the larger it is."""
    return Bound(low=limit, aim=aim)


def at_most(limit: float) -> Bound:
    """Bound a ratio that is better the smaller it is."""
    return Bound(high=limit)


def within(share: float) -> Bound:
    """Bound a ratio that should be 1, give or take `share`."""
    return Bound(1 - share, 1 + share)


@dataclass(frozen=True)
class Target:
    """One comparison; `what` says what is divided by what. `sides` starts what both sides need, and stops it at the end."""

    name: str
    what: str
    bounds: Mapping[str, Bound]
    sides: Callable[[Setting], AbstractContextManager[Sides]]
    needs_weights: bool = False
    asked_for: bool = False  # measured only where it is named
