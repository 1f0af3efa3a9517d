"""Compare with Optimum's ONNX Runtime pipeline: eight users who ask for different settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ..peers import optimum
from ..target import Setting, Sides, Target, at_least
from .vs_diffusers import beside

NAME = "vs_optimum"


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Measure pictures per second, 8 users with different steps and guidance: ours; Optimum, one by one."""
    with beside(setting, partial(optimum, folder=setting.output / "peers"), NAME) as both:
        yield both


TARGET = Target(
    NAME,
    "pictures per second, 8 users with different steps and guidance: ours ÷ Optimum's ONNX Runtime pipeline on the same "
    "weights and threads, serving them one by one",
    {NAME: at_least(1.3)},
    sides,
    needs_weights=True,
)
