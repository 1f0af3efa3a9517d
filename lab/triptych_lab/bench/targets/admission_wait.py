"""Measure how long a request waits for its first step when there is room for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import numpy as np

from ..load import replay
from ..requests import arrivals_at
from ..serving import started
from ..target import Setting, Sides, Target, at_most

NAME = "admission_wait"
LOAD = 0.5
STEPS = (2, 8, 20)


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Measure the p99 of the steps that end between a request's submission and its first step; compare it with one step.

    One, since a request arrives during a step and waits for its end. Counted in steps and not in seconds: a request is more
    likely to arrive during a long step than during a short one, so in mean steps even a perfect loop would be above 1.
    """
    with started(setting.builds) as served:
        arrivals, repeats = arrivals_at(setting, LOAD, STEPS), count()

        def waited() -> dict[str, float]:
            answers = replay(served.url, arrivals(next(repeats))).answers
            return {NAME: float(np.percentile([answer.timings["queue_steps"] for answer in answers], 99))}

        yield Sides(waited, lambda: {NAME: 1.0})


TARGET = Target(NAME, "p99 wait for a free slot, in steps, at half the load ÷ one step", {NAME: at_most(1.1)}, sides)
