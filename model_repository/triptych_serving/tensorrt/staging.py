"""Page-locked memory for copies that are under way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .device import Bytes, Device, Shape

BLOCK = 16 << 20  # bytes: page-locking is slow, so not for each array
ALIGNMENT = 256


class Staging:
    """Gives out page-locked arrays, in two halves: while the copies of one are under way, the other is filled.

    Memory is taken when it is needed first, and given out again after two turns.
    """

    def __init__(self, device: Device) -> None:
        self._halves = [_Half(device), _Half(device)]

    def turn(self) -> None:
        """Go on with the other half. Before its next array is asked for, the copies from and to its old ones must be done."""
        self._halves.reverse()
        self.again()

    def again(self) -> None:
        """Go on with this half from its beginning; the same goes for it."""
        self._halves[0].clear()

    def array(self, shape: Shape, dtype: DTypeLike) -> NDArray[Any]:
        """Give an array, of whatever was there, that is left alone until the turn after the next."""
        dtype = np.dtype(dtype)
        return self._halves[0].take(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


class _Half:
    def __init__(self, device: Device) -> None:
        self._device = device
        self._blocks: list[Bytes] = []
        self.clear()

    def clear(self) -> None:
        self._block = self._used = 0

    def take(self, nbytes: int) -> Bytes:
        while self._block < len(self._blocks) and self._used + nbytes > len(self._blocks[self._block]):
            self._block, self._used = self._block + 1, 0
        if self._block == len(self._blocks):
            self._blocks.append(self._device.page_locked(max(BLOCK, nbytes)))
        begin, self._used = self._used, self._used + math.ceil(nbytes / ALIGNMENT) * ALIGNMENT
        return self._blocks[self._block][begin : begin + nbytes]
