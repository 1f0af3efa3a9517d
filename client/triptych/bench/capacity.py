"""The highest rate that a server keeps its promise at."""

from __future__ import annotations

import math
from collections.abc import Callable

from .errors import BenchError

SHARE = 0.95
FACTOR = 1.5
PROBES = 10
Point = tuple[float, float]  # a rate, and the share that it was kept for


def highest_rate(within: Callable[[float], float], guess: float, *, share: float = SHARE) -> float:
    """The rate at which `share` of the requests is still answered in time.

    From `guess` (requests per second) in steps of a half, up while it holds and down while it does not; once more
    between the last two, and then by a straight line over the logarithm of the rate.

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
            return _between((rate, reached), (following, then), within, share)
        rate, reached = following, then
    raise BenchError(
        f"capacity: from {guess:.3g} to {rate:.3g} requests a second, {share:.0%} are {_kept(holds)} in time"
    )


def _between(one: Point, other: Point, within: Callable[[float], float], share: float) -> float:
    """Where it breaks between two rates, after one more between them."""
    middle = math.sqrt(one[0] * other[0])
    reached = within(middle)
    end = other if (reached >= share) == (one[1] >= share) else one
    return _crossing((middle, reached), end, share)


def _crossing(one: Point, other: Point, share: float) -> float:
    (x, y), (x_other, y_other) = one, other
    weight = (y - share) / (y - y_other)
    return math.exp(math.log(x) + weight * (math.log(x_other) - math.log(x)))


def _kept(holds: bool) -> str:
    return "always" if holds else "never"
