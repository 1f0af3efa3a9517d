"""How long a request waits for its first step where there is room."""

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
    """The p99 of the steps that ended before a request's first, the one counted in whose midst it came; one step.

    In steps, not in seconds over a mean step: the step that somebody waits for is longer than the mean, as a long one is met more
    often, so that even a loop that lets everybody in at once would have more than one.
    """
    with started(setting.builds) as served:
        arrivals, repeats = arrivals_at(setting, LOAD, STEPS), count()

        def waited() -> dict[str, float]:
            answers = replay(served.url, arrivals(next(repeats))).answers
            return {NAME: float(np.percentile([answer.timings["queue_steps"] for answer in answers], 99))}

        yield Sides(waited, lambda: {NAME: 1.0})


TARGET = Target(NAME, "p99 wait for a free slot, in steps, at half the load ÷ one step", {NAME: at_most(1.1)}, sides)
