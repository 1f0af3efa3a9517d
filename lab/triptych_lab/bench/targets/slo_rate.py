"""Compare the rate at which a promise to users can be kept with that of a loop that serves one request at a time."""

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
# Shorter and fewer requests than elsewhere, since a search takes several runs.
STEPS = (2, 8, 20)
REQUESTS = 20
# On a machine where batches gain little, this share of what they can gain is enough.
OF_LIMIT = 0.9

Needed = Callable[[Sequence[Arrival]], float]


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Measure the highest rate with 95% of requests within 5 times their solo time: ours; one request at a time.

    Both have the same solo times, and the same requests in each repeat.
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
    """Make a side. Each repeat is a search over rates with the same requests, which begins at the rate that is simulated."""
    repeats, number = count(), setting.count(REQUESTS)

    def needed(arrivals: Sequence[Arrival]) -> float:
        return lateness(replay(url, arrivals).latencies_s, arrivals, solo, SHARE) / TIMES

    def measure() -> dict[str, float]:
        repeat = next(repeats)
        guess = foretold(setting, policy, number, repeat)
        return {NAME: highest_rate(lambda rate: needed(mixed(rate, number, repeat, STEPS)), guess)}

    return measure


def foretold(setting: Setting, policy: type[Policy], number: int, seed: int) -> float:
    """Find the highest rate in the simulator."""
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
