"""Compare batches that are made anew at every step with batches that begin together and stay together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import numpy as np

from triptych_lab.workload import Arrival

from ..load import replay
from ..policies import SameStep
from ..requests import arrivals_at
from ..serving import started
from ..target import Setting, Side, Sides, Target, at_least

MEAN, P99 = "step_batching_mean", "step_batching_p99"
# The first fifth of the requests find an almost empty server; they are served but not counted.
WARM_UP = 5


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Measure latencies of 4, 20 and 50 steps at Poisson arrivals: same-step batches; ours.

    Each repeat has other arrivals, which are the same for both sides.
    """
    with started(setting.builds, SameStep) as theirs, started(setting.builds) as ours:
        arrivals = arrivals_at(setting, setting.load)
        yield Sides(_side(theirs.url, arrivals), _side(ours.url, arrivals))


def _side(url: str, arrivals: Callable[[int], Sequence[Arrival]]) -> Side:
    repeats = count()

    def measure() -> dict[str, float]:
        latencies = replay(url, arrivals(next(repeats))).latencies_s
        latencies = latencies[len(latencies) // WARM_UP :]
        return {MEAN: float(np.mean(latencies)), P99: float(np.percentile(latencies, 99))}

    return measure


TARGET = Target(
    "step_batching",
    "latency of mixed 4, 20 and 50 steps, Poisson, at 70% (--load) of what full batches carry: batching only same-step requests "
    "from their start ÷ ours",
    {MEAN: at_least(1.5, aim=2.0), P99: at_least(1.2, aim=1.5)},
    sides,
)
