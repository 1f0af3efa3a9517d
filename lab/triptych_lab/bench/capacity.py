"""Find the highest rate at which a server keeps its promise."""

from __future__ import annotations

import math
from collections.abc import Callable

from .errors import BenchError

FACTOR = 1.25
PROBES = 12
Point = tuple[float, float]  # a rate, and the time that was needed at it, as a multiple of the time allowed


def highest_rate(needed: Callable[[float], float], guess: float) -> float:
    """Find the highest rate, in requests per second, at which no more than the allowed time is needed.

    It goes from `guess` in steps of a quarter, up while the promise holds or down while it does not, until that changes; then it
    interpolates between the last two rates, linearly in the logarithms.

    Args:
        needed: runs a rate, and returns the time needed as a multiple of the time allowed; above 1 the promise is broken.

    Raises:
        BenchError: the promise holds at all rates that were tried, or at none.
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
