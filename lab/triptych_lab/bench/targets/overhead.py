"""Compare one request through Triton with the model calls that it consists of."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from ..bare import BareSdxl
from ..load import draw_all, pixels
from ..requests import SAME, same
from ..serving import started
from ..target import Setting, Sides, Target, at_most

NAME = "overhead"
IMAGES = 8


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Measure median seconds of a guided picture of 20 steps: through Triton; its stages called bare in one process."""
    requests, steps = same(setting.count(IMAGES)), int(SAME["num_inference_steps"])
    with started(setting.builds) as served:
        bare = BareSdxl(setting.build, pixels(served.url, requests[0]))
        bare.draw(1)
        yield Sides(
            lambda: {NAME: median(draw_all(served.url, [request], users=1) for request in requests)},
            lambda: {NAME: median(_seconds(bare, steps) for _ in requests)},
        )


def _seconds(bare: BareSdxl, steps: int) -> float:
    began = time.monotonic()
    bare.draw(steps)
    return time.monotonic() - began


TARGET = Target(
    NAME,
    "one request end to end through Triton ÷ the same stages called bare in one process",
    {NAME: at_most(1.05)},
    sides,
)
