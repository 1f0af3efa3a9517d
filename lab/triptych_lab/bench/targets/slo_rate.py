"""How many users can be promised something, beside a loop that serves one request at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from statistics import fmean

from triptych_lab.simulator import Farm, Planner, ServerSpec, simulate
from triptych_lab.workload import Arrival
from triptych_serving.policy import Policy

from ..capacity import highest_rate
from ..cost import attainable, cost_model, full_rate, measured
from ..load import replay
from ..policies import OneAtATime
from ..requests import lateness, mixed, solo_seconds
from ..serving import started
from ..target import Setting, Side, Sides, Target, at_least

NAME = "slo_rate"
TIMES, SHARE = 5.0, 0.95
# Fewer than elsewhere: a search is several runs.
STEPS = (2, 8, 20)
REQUESTS = 20
# The share of what the model's own time for a row allows that is enough.
OF_LIMIT = 0.9

Needed = Callable[[Sequence[Arrival]], float]


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """The highest rate with 95% of requests within 5 times their solo time: ours; one request at a time.

    Both are held to the same solo times, and have the same requests in each repeat. Where rows are hardly cheaper together, a
    share of what that allows is enough.
    """
    document = measured(setting.build)
    with started(setting.builds) as ours, started(setting.builds, OneAtATime) as theirs:
        solo = solo_seconds(ours.url, STEPS)
        yield Sides(
            _side(setting, ours.url, solo, Policy),
            _side(setting, theirs.url, solo, OneAtATime),
            {NAME: OF_LIMIT * attainable(document, fmean(STEPS))},
        )


def _side(setting: Setting, url: str, solo: Mapping[int, float], policy: type[Policy]) -> Side:
    """Each repeat has a search of its own, over the same requests at other rates; it begins where the simulator ends."""
    repeats, number = count(), setting.count(REQUESTS)

    def needed(arrivals: Sequence[Arrival]) -> float:
        return lateness(replay(url, arrivals).latencies_s, arrivals, solo, SHARE) / TIMES

    def measure() -> dict[str, float]:
        repeat = next(repeats)
        guess = foretold(setting, policy, number, repeat)
        return {NAME: highest_rate(lambda rate: needed(mixed(rate, number, repeat, STEPS)), guess)}

    return measure


def foretold(setting: Setting, policy: type[Policy], number: int, seed: int) -> float:
    """The highest rate by the simulator."""
    document, planner = measured(setting.build), Planner(setting.build)
    farm = Farm(ServerSpec(cost_model(document)), policy=policy)

    def needed(rate: float) -> float:
        report = simulate(mixed(rate, number, seed, STEPS), planner, farm, slo=TIMES)
        return 0.9 if report["within_slo"] >= SHARE else 1.1

    return highest_rate(needed, full_rate(document, fmean(STEPS)) / 2)


TARGET = Target(
    NAME,
    "highest rate with 95% of requests, of 2, 8 and 20 steps, within 5 times their solo time: ours ÷ a loop that serves one "
    "request at a time",
    {NAME: at_least(1.5)},
    sides,
)
