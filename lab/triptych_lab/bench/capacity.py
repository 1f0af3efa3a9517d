"""The highest rate that a server keeps its promise at."""

from __future__ import annotations

import math
from collections.abc import Callable

from .errors import BenchError

FACTOR = 1.25
PROBES = 12
Point = tuple[float, float]  # a rate, and the share of the allowed time that was needed at it


def highest_rate(needed: Callable[[float], float], guess: float) -> float:
    """The rate at which no more than the allowed time is needed.

    From `guess` (requests per second) in steps of a quarter, up while it holds and down while it does not; between the last
    two by a straight line over the logarithms.

    Args:
        needed: runs a rate, and says which share of the allowed time was needed; above 1 the promise is broken.

    Raises:
        BenchError: it holds at no rate that was tried, or at all of them.
    """
    last = (guess, needed(guess))
    holds = last[1] <= 1
    for _ in range(PROBES):
        rate = last[0] * (FACTOR if holds else 1 / FACTOR)
        following = (rate, needed(rate))
        if (following[1] <= 1) != holds:
            return _crossing(last, following)
        last = following
    raise BenchError(f"capacity: from {guess:.3g} to {last[0]:.3g} requests a second, it {_kept(holds)} holds")


def _crossing(one: Point, other: Point) -> float:
    (x, y), (x_other, y_other) = ((math.log(rate), math.log(needed)) for rate, needed in (one, other))
    return math.exp(x + (x_other - x) * y / (y - y_other))


def _kept(holds: bool) -> str:
    return "always" if holds else "never"
