"""Compare with diffusers' pipeline: eight users who ask for different settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ..load import draw_all
from ..peers import Peer, diffusers
from ..peers.weights import check_same, weights_of
from ..requests import USERS, varied
from ..serving import started
from ..target import Setting, Sides, Target, at_least

NAME = "vs_diffusers"
IMAGES = 8


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Measure pictures per second, 8 users with different steps and guidance: ours; diffusers, one by one."""
    with beside(setting, diffusers, NAME) as both:
        yield both


@contextmanager
def beside(setting: Setting, peer: Callable[[Path], AbstractContextManager[Peer]], name: str) -> Iterator[Sides]:
    """Measure pictures per second: ours; a peer that serves the same requests one by one."""
    requests = varied(setting.count(IMAGES))
    with peer(weights_of(setting)) as other, started(setting.builds) as served:
        check_same(other, served.url)
        yield Sides(
            lambda: {name: len(requests) / draw_all(served.url, requests, USERS)},
            lambda: {name: len(requests) / other.draw(requests)},
        )


TARGET = Target(
    NAME,
    "pictures per second, 8 users with different steps and guidance: ours ÷ diffusers' pipeline on the same weights and "
    "threads, serving them one by one",
    {NAME: at_least(2.0)},
    sides,
    needs_weights=True,
)
