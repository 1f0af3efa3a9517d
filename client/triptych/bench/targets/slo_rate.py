"""How many users can be promised something, beside a loop that serves one request at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean

from triptych.demo import demo_build

from ..capacity import highest_rate
from ..cost import attainable, measure
from ..load import replay
from ..policies import OneAtATime
from ..requests import in_time, mixed, rate_at, solo_seconds
from ..serving import started
from ..target import Pair, Setting, Side, Target, at_least

NAME = "slo_rate"
TIMES = 5.0
# Fewer than elsewhere: a search is several runs.
STEPS = (2, 10, 25)
REQUESTS = 20
REPEATS = 1
# Where the searches begin, as shares of what one request at a time can carry.
BEGIN_OURS, BEGIN_THEIRS = 0.7, 0.3
# The share of what the model's own time for a row allows that is enough.
OF_LIMIT = 0.9


@contextmanager
def sides(setting: Setting) -> Iterator[Pair]:
    """The highest rate with 95% of requests within 5 times their solo time: ours; one request at a time.

    Both are held to the same solo times. Where rows are hardly cheaper together, a share of what that allows is enough.
    """
    limit = attainable(measure(setting.builds[0] if setting.builds else demo_build()), fmean(STEPS))
    with started(setting.builds) as ours, started(setting.builds, OneAtATime) as theirs:
        solo = solo_seconds(ours.url, STEPS)
        count = setting.count(REQUESTS)
        yield Pair(
            _side(ours.url, solo, count, BEGIN_OURS),
            _side(theirs.url, solo, count, BEGIN_THEIRS),
            {NAME: OF_LIMIT * limit},
        )


def _side(url: str, solo: Mapping[int, float], count: int, begin: float) -> Side:
    def within(rate: float) -> float:
        arrivals = mixed(rate, count, steps=STEPS)
        return in_time(replay(url, arrivals).latencies_s, arrivals, solo, TIMES)

    return lambda: {NAME: highest_rate(within, rate_at(begin, solo))}


TARGET = Target(
    NAME,
    "highest rate with 95% of requests, of 2, 10 and 25 steps, within 5 times their solo time: ours ÷ a loop that serves one "
    "request at a time",
    {NAME: at_least(1.5)},
    sides,
    most_repeats=REPEATS,
)
