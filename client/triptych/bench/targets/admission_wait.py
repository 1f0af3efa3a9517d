"""How long a request waits for its first step where there is room."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import numpy as np

from triptych import Client

from ..load import replay
from ..requests import arrivals_at
from ..serving import started
from ..target import Pair, Setting, Target, at_most

NAME = "admission_wait"
LOAD = 0.5
STEPS = (2, 8, 20)
REQUESTS = 24


@contextmanager
def sides(setting: Setting) -> Iterator[Pair]:
    """Milliseconds of one run: the p99 wait for a first step; a step in the mean."""
    with started(setting.builds) as served:
        arrivals, repeats, step_ms = arrivals_at(setting, LOAD, REQUESTS, STEPS), count(), [0.0]

        def wait() -> dict[str, float]:
            before = _totals(served.url)
            run = replay(served.url, arrivals(next(repeats)))
            seconds, batches = (after - earlier for after, earlier in zip(_totals(served.url), before, strict=True))
            step_ms[0] = 1000 * seconds / batches
            return {NAME: float(np.percentile([answer.timings["queue_ms"] for answer in run.answers], 99))}

        yield Pair(wait, lambda: {NAME: step_ms[0]})


def _totals(url: str) -> tuple[float, float]:
    with Client(url) as client:
        stats = client.stats()
    return stats["step_seconds_total"], stats["batches_total"]


TARGET = Target(NAME, "p99 wait for a free slot ÷ one step, at half the load", {NAME: at_most(1.1)}, sides)
