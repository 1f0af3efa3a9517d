"""Batches made anew at every step, beside batches that begin together and stay together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..load import replay
from ..policies import SameStep
from ..requests import mixed, rate_at, solo_seconds
from ..serving import started
from ..target import Pair, Setting, Side, Target, at_least

MEAN, P99 = "step_batching_mean", "step_batching_p99"
# Of what one request at a time can carry: a load that every policy carries.
LOAD = 0.7
REQUESTS = 40


@contextmanager
def sides(setting: Setting) -> Iterator[Pair]:
    """Latencies of 4, 20 and 50 steps at Poisson arrivals: batching same-step requests from their start; ours.

    Each repeat has other arrivals, the same for both sides.
    """
    with started(setting.builds, SameStep) as theirs, started(setting.builds) as ours:
        rate = rate_at(LOAD, solo_seconds(ours.url))
        yield Pair(*(_side(served.url, rate, setting.count(REQUESTS)) for served in (theirs, ours)))


def _side(url: str, rate: float, count: int) -> Side:
    seeds = iter(range(10_000))

    def measure() -> dict[str, float]:
        latencies = replay(url, mixed(rate, count, next(seeds))).latencies_s
        return {MEAN: float(np.mean(latencies)), P99: float(np.percentile(latencies, 99))}

    return measure


TARGET = Target(
    "step_batching",
    "latency of mixed 4, 20 and 50 steps, Poisson, at 70% of what one request at a time carries: batching only same-step "
    "requests from their start ÷ ours",
    {MEAN: at_least(1.5, aim=2.0), P99: at_least(1.2, aim=1.5)},
    sides,
)
