"""Compare with diffusers' pipeline at its best batch size: eight users who ask for the same settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..load import draw_all
from ..peers import Peer, diffusers
from ..peers.weights import check_same, weights_of
from ..requests import USERS, same
from ..serving import started
from ..target import Setting, Sides, Target, at_least

NAME = "vs_diffusers_batch"
IMAGES = 8
BATCHES = (1, 2, 4, 8)


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Measure pictures per second of identical settings: ours with 8 users; diffusers in its best batches."""
    requests = same(setting.count(IMAGES))
    with diffusers(weights_of(setting)) as other, started(setting.builds) as served:
        batch = 1 if setting.quick else best_batch(other, len(requests))
        check_same(other, served.url)
        yield Sides(
            lambda: {NAME: len(requests) / draw_all(served.url, requests, USERS)},
            lambda: {NAME: len(requests) / other.draw(requests, batch=batch)},
        )


def best_batch(peer: Peer, images: int) -> int:
    """Find the batch size at which a peer draws so many pictures fastest."""
    requests = same(images)
    return min(BATCHES, key=lambda batch: peer.draw(requests, batch=batch))


TARGET = Target(
    NAME,
    "pictures per second, identical settings: ours with 8 users ÷ diffusers' pipeline at its best batch size",
    {NAME: at_least(1.3)},
    sides,
    needs_weights=True,
)
