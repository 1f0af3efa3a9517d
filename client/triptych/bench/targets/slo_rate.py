"""How many users can be promised something, beside a loop that serves one request at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..capacity import highest_rate
from ..load import replay
from ..policies import OneAtATime
from ..requests import in_time, mixed, rate_at, solo_seconds
from ..serving import started
from ..target import Pair, Setting, Side, Target, at_least

NAME = "slo_rate"
TIMES = 5.0
REQUESTS = 40
# Where the search begins, as a share of what one request at a time can carry.
BEGIN = 0.7


@contextmanager
def sides(setting: Setting) -> Iterator[Pair]:
    """The highest rate with 95% of requests within 5 times their solo time: ours; one request at a time.

    Both are held to the same solo times.
    """
    with started(setting.builds) as ours, started(setting.builds, OneAtATime) as theirs:
        solo = solo_seconds(ours.url)
        yield Pair(*(_side(served.url, solo, setting.count(REQUESTS)) for served in (ours, theirs)))


def _side(url: str, solo: Mapping[int, float], count: int) -> Side:
    def within(rate: float) -> float:
        arrivals = mixed(rate, count)
        return in_time(replay(url, arrivals).latencies_s, arrivals, solo, TIMES)

    return lambda: {NAME: highest_rate(within, rate_at(BEGIN, solo))}


TARGET = Target(
    NAME,
    "highest rate with 95% of requests within 5 times their solo time: ours ÷ a loop that serves one request at a time",
    {NAME: at_least(1.5)},
    sides,
)
