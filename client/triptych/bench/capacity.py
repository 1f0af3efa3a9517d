"""The highest rate that a server keeps its promise at."""

from __future__ import annotations

import math
from collections.abc import Callable

from .errors import BenchError

SHARE = 0.95
FACTOR = 1.5
PROBES = 10


def highest_rate(within: Callable[[float], float], guess: float, *, share: float = SHARE) -> float:
    """The rate at which `share` of the requests is still answered in time.

    From `guess` (requests per second) in steps of a half, up while it holds and down while it does not; between the last
    two rates by a straight line over the logarithm of the rate.

    Args:
        within: runs a rate, and says which share of its requests was answered in time.

    Raises:
        BenchError: it holds at no rate that was tried, or at all of them.
    """
    rate, reached = guess, within(guess)
    holds = reached >= share
    for _ in range(PROBES):
        following = rate * (FACTOR if holds else 1 / FACTOR)
        then = within(following)
        if (then >= share) != holds:
            return _crossing((rate, reached), (following, then), share)
        rate, reached = following, then
    raise BenchError(
        f"capacity: from {guess:.3g} to {rate:.3g} requests a second, {share:.0%} are {_kept(holds)} in time"
    )


def _crossing(one: tuple[float, float], other: tuple[float, float], share: float) -> float:
    (x, y), (x_other, y_other) = one, other
    weight = (y - share) / (y - y_other)
    return math.exp(math.log(x) + weight * (math.log(x_other) - math.log(x)))


def _kept(holds: bool) -> str:
    return "always" if holds else "never"
