"""Compare a long queue with a short one: does it make pictures slower, or the server larger?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..queues import Queues
from ..serving import started
from ..target import Setting, Sides, Target, at_most

TIME, MEMORY = "growth", "growth_memory"
DEEP, SHALLOW = 200, 8
# More than the depth, so that the queue is full for most of the time.
PICTURES = 300


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Measure seconds for a picture and the server's bytes, with as many pictures: at queue depth 200; at depth 8.

    The bytes at depth 8 are measured before there is a deep queue, since a process keeps memory that it once had.
    """
    with started(setting.builds) as served:
        queues = Queues(served.url, setting.count(PICTURES))
        before = queues.run(SHALLOW).server_bytes

        def deep() -> dict[str, float]:
            run = queues.run(DEEP)
            return {TIME: run.seconds, MEMORY: run.server_bytes}

        yield Sides(deep, lambda: {TIME: queues.run(SHALLOW).seconds, MEMORY: before})


TARGET = Target(
    "growth",
    "time for a small picture of 2 steps at queue depth 200 ÷ at depth 8; the server's memory likewise",
    {TIME: at_most(1.05), MEMORY: at_most(1.05)},
    sides,
)
