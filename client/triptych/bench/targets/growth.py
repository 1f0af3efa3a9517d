"""Whether a long queue makes pictures dearer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..load import draw_all
from ..memory import peak
from ..requests import same
from ..serving import started
from ..target import Pair, Setting, Target, at_most

TIME, MEMORY = "growth", "growth_memory"
DEEP, SHALLOW = 200, 8
STEPS = 2
REPEATS = 2

Requests = Sequence[Mapping[str, Any]]


@contextmanager
def sides(setting: Setting) -> Iterator[Pair]:
    """Seconds for a picture of 2 steps, and the server's bytes: at queue depth 200; at depth 8. As many pictures each.

    The shallow queue's bytes are taken before there was a deep one: a process keeps what it once had.
    """
    with started(setting.builds) as served:
        requests = same(setting.count(DEEP), num_inference_steps=STEPS)
        _, shallow_bytes = _measured(served.url, requests, SHALLOW)

        def deep() -> dict[str, float]:
            seconds, most = _measured(served.url, requests, DEEP)
            return {TIME: seconds, MEMORY: most}

        yield Pair(deep, lambda: {TIME: _measured(served.url, requests, SHALLOW)[0], MEMORY: shallow_bytes})


def _measured(url: str, requests: Requests, users: int) -> tuple[float, float]:
    """Seconds for a picture, and the most bytes meanwhile."""
    seconds, most = peak(partial(draw_all, url, requests, users))
    return seconds / len(requests), most


TARGET = Target(
    "growth",
    "time for a picture at queue depth 200 ÷ at depth 8; memory likewise",
    {TIME: at_most(1.05), MEMORY: at_most(1.05)},
    sides,
    most_repeats=REPEATS,
)
