"""What is to be shown: a name, two sides that are measured in turns, and the bounds of their ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from triptych_demo import demo_build

# One measurement: a figure for each of a target's ratios, by the ratio's name.
Side = Callable[[], Mapping[str, float]]


class Sides(NamedTuple):
    """The two sides of a target; a ratio is the first's figure ÷ the second's.

    `eased` are lower bounds, by ratio, that are enough on this machine: where its model leaves no room for more.
    """

    first: Side
    second: Side
    eased: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Setting:
    """What a run of the benchmark was asked for.

    `weights` is the folder in diffusers layout that the first build was exported from; the demo needs none.
    `workload` is a file of requests, in the place of those drawn by chance where a latency is measured. `load` is the share
    of the rate that this machine carries in full batches.
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
        """What is compared: the first build."""
        return self.builds[0] if self.builds else demo_build()

    def count(self, requests: int) -> int:
        """So many requests, or a few where only the harness is tried."""
        return min(requests, 3) if self.quick else requests


@dataclass(frozen=True)
class Bound:
    """Where a ratio should lie, the ends included; `aim` is what is hoped for."""

    low: float = -math.inf
    high: float = math.inf
    aim: float | None = None

    def holds(self, value: float) -> bool:
        """Whether `value` lies there; what is no number does not."""
        return self.low <= value <= self.high

    def eased(self, low: float) -> Bound:
        """The same where less is enough."""
        return replace(self, low=min(self.low, low))

    def __str__(self) -> str:
        if self.high == math.inf:
            return f">={self.low:g}"
        return f"<={self.high:g}" if self.low == -math.inf else f"{self.low:g}..{self.high:g}"


def at_least(limit: float, aim: float | None = None) -> Bound:
    """A ratio that is the better the larger it is."""
    return Bound(low=limit, aim=aim)


def at_most(limit: float) -> Bound:
    """A ratio that is the better the smaller it is."""
    return Bound(high=limit)


def within(share: float) -> Bound:
    """A ratio that should be 1, give or take `share`."""
    return Bound(1 - share, 1 + share)


@dataclass(frozen=True)
class Target:
    """One comparison. `sides` sets both up, servers and all, and takes them down; `what` says what is divided by what."""

    name: str
    what: str
    bounds: Mapping[str, Bound]
    sides: Callable[[Setting], AbstractContextManager[Sides]]
    needs_weights: bool = False
    asked_for: bool = False  # measured only where it is named
