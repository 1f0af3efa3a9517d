"""One request through Triton, beside the calls that it is made of."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..bare import BareSdxl
from ..load import draw_all
from ..requests import SAME, same
from ..serving import started
from ..target import Pair, Setting, Target, at_most

NAME = "overhead"
IMAGES = 4


@contextmanager
def sides(setting: Setting) -> Iterator[Pair]:
    """Seconds of a guided picture of 20 steps: end to end through Triton; its stages called bare in one process."""
    count, steps = setting.count(IMAGES), int(SAME["num_inference_steps"])
    bare = BareSdxl(setting.build)
    bare.draw(1)
    with started(setting.builds) as served:

        def ours() -> dict[str, float]:
            return {NAME: draw_all(served.url, same(count), users=1) / count}

        def theirs() -> dict[str, float]:
            began = time.monotonic()
            for _ in range(count):
                bare.draw(steps)
            return {NAME: (time.monotonic() - began) / count}

        ours()
        yield Pair(ours, theirs)


TARGET = Target(
    NAME,
    "one request end to end through Triton ÷ the same stages called bare in one process",
    {NAME: at_most(1.05)},
    sides,
)
