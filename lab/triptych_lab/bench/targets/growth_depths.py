"""Compare more depths of the queue, up to a thousand requests of one client in flight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..queues import Queues
from ..serving import started
from ..target import Bound, Setting, Sides, Target, at_most

SHALLOW = 8
DEPTHS = (50, 200, 1000)
PICTURES = 2000
BOUNDS: dict[str, Bound] = {
    f"growth{kind}_{depth}": at_most(1.05) for depth in DEPTHS for kind in ("", "_memory", "_client")
}


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Measure seconds for a picture, the server's bytes and the client's, with as many pictures: at each depth; at depth 8.

    The bytes at depth 8 are measured before there is a deeper queue, since a process keeps memory that it once had.
    """
    with started(setting.builds) as served:
        queues = Queues(served.url, setting.count(PICTURES))
        first = queues.run(SHALLOW)

        def deep() -> dict[str, float]:
            runs = {depth: queues.run(depth) for depth in DEPTHS}
            return {
                name: value
                for depth, run in runs.items()
                for name, value in zip(_names(depth), (run.seconds, run.server_bytes, run.client_bytes), strict=True)
            }

        def shallow() -> dict[str, float]:
            figures = (queues.run(SHALLOW).seconds, first.server_bytes, first.client_bytes)
            return {name: value for depth in DEPTHS for name, value in zip(_names(depth), figures, strict=True)}

        yield Sides(deep, shallow)


def _names(depth: int) -> tuple[str, str, str]:
    return f"growth_{depth}", f"growth_memory_{depth}", f"growth_client_{depth}"


TARGET = Target(
    "growth_depths",
    "time for a small picture of 2 steps, the server's memory and the client's, at this queue depth ÷ at depth 8",
    BOUNDS,
    sides,
    asked_for=True,
)
