"""Draw the noise that torch would draw, without torch.

`torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))` is MT19937 (seeded with the low 32 bits), uniforms of
24 bits, and Box–Muller over blocks of 16 (ATen/native/cpu/DistributionTemplates.h, `normal_fill`). So a seed gives the same
noise here as in diffusers.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

BLOCK = 16
TWO_PI = np.float32(2 * math.pi)


class TorchGenerator:
    """Draw the noise of one image. Every draw continues where the last one ended, as with one `torch.Generator`."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    @cached_property
    def _bits(self) -> np.random.MT19937:
        """The generator's state of 2.5 kB, made at the first draw: the simulator's millions of jobs draw nothing."""
        bits = np.random.MT19937()
        bits._legacy_seeding(self._seed & 0xFFFFFFFF)
        return bits

    def randn(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Draw standard normal values of `shape`, float32, within 1e-6 of torch's.

        Raises:
            ValueError: `shape` has fewer than 16 values, which torch draws in another way.
        """
        size = math.prod(shape)
        if size < BLOCK:
            raise ValueError(f"shape: {shape} given; legal: at least {BLOCK} values")
        values = self._uniform(size)
        whole = size - size % BLOCK
        values[:whole] = _box_muller(values[:whole])
        if whole < size:  # torch draws the last block again, overlapping the one before
            values[-BLOCK:] = _box_muller(self._uniform(BLOCK))
        return values.reshape(shape)

    def _uniform(self, size: int) -> NDArray[np.float32]:
        bits = self._bits.random_raw(size).astype(np.uint32) & np.uint32((1 << 24) - 1)
        return bits.astype(np.float32) * np.float32(2.0**-24)


def _box_muller(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    pairs = uniform.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - pairs[:, 0]))
    angle = TWO_PI * pairs[:, 1]
    normal: NDArray[np.float32] = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
    return normal
