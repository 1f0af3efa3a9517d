"""What one request's adapters add to a graph: their slabs beside each other, in a fixed number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
INPUTS = ("lora_a", "lora_b")


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

    def slab(self, name: str) -> Floats:
        """Make one of INPUTS: (Σ in, rank) or (rank, Σ out)."""
        if name == INPUTS[0]:
            together = np.concatenate([part.a for part in self.parts], axis=1)
            return np.pad(together, ((0, 0), (0, self.rank - together.shape[1])))
        together = np.concatenate([part.b * np.float32(part.scale) for part in self.parts])
        return np.pad(together, ((0, self.rank - len(together)), (0, 0)))
