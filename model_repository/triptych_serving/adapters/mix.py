"""What one request's adapters add to a graph: their slabs beside each other, in a fixed number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
INPUTS = ("lora_a", "lora_b")
# Where an input with its row has the layers side by side: (1, Σ in, rank), (1, rank, Σ out).
AXIS = {"lora_a": 1, "lora_b": 2}
# The most rows of one call on a GPU. At rank 64 a row's slabs of SDXL's UNet take 190 MB in float16, and four rows of 1024² keep
# a GPU busy.
GPU_ROWS = 4


def part(slab: str, layer: int) -> str:
    """Name the input of a graph that has a layer's part of a slab by itself; `slab_of` undoes it."""
    return f"{slab}.{layer}"


def slab_of(name: str) -> str:
    """Name the slab that an input is, or is a part of; any other input by itself."""
    slab = name.partition(".")[0]
    return slab if slab in INPUTS else name


class Worn(NamedTuple):
    """One adapter in a mix: A's (Σ in, rank), B's (rank, Σ out), both mapped from the shelf, and how strongly it works."""

    a: Floats
    b: Floats
    scale: float


@dataclass(frozen=True, eq=False)
class Mix:
    """A request's adapters. They fill as many ranks as the graph takes, since its bytes hang on how many there are."""

    parts: tuple[Worn, ...]
    rank: int

    def shape(self, name: str) -> tuple[int, int]:
        """Give the shape of one of INPUTS."""
        a, b, _ = self.parts[0]
        return (len(a), self.rank) if name == INPUTS[0] else (self.rank, b.shape[1])

    def slab(self, name: str) -> Floats:
        """Make one of INPUTS: (Σ in, rank) or (rank, Σ out)."""
        if name == INPUTS[0]:
            together = np.concatenate([part.a for part in self.parts], axis=1)
            return np.pad(together, ((0, 0), (0, self.rank - together.shape[1])))
        together = np.concatenate([part.b * np.float32(part.scale) for part in self.parts])
        return np.pad(together, ((0, self.rank - len(together)), (0, 0)))
