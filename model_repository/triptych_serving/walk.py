"""The rows of a sampler table that a request goes through, and for each which model runs it and whether it is guided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from .denoiser import Kind
from .tables import SamplerTable


@dataclass(frozen=True, eq=False)
class Walk:
    """R rows of a sampler table, each a step of the request."""

    table: SamplerTable
    denoisers: tuple[str, ...]  # (R) the model that runs each
    guided: NDArray[np.bool_]  # (R,) whether it has classifier-free guidance
    follows: tuple[tuple[int, ...], ...] = ()  # (R) which of the request's controls are on; empty where it has none

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def kinds(self) -> list[Kind]:
        """The kind of each step, (R)."""
        return [Kind(bool(guided), on) for guided, on in zip(self.guided, self.follows or repeat(()), strict=False)]

    @cached_property
    def batch_rows(self) -> list[int]:
        """How many rows of a batch each step takes, (R): a guided one 2, unconditional and conditional."""
        return [2 if guided else 1 for guided in self.guided]

    @cached_property
    def alike(self) -> list[int]:
        """How many steps in a row, from each on and including it, have the same model and as many rows of a batch, (R)."""
        runs: list[int] = []
        kinds = list(zip(self.denoisers, self.batch_rows, strict=True))
        for k in range(len(kinds) - 1, -1, -1):
            runs.append(runs[-1] + 1 if k + 1 < len(kinds) and kinds[k] == kinds[k + 1] else 1)
        return runs[::-1]

    @cached_property
    def remaining(self) -> list[Mapping[str, int]]:
        """How many rows of batches are left for each model, before each step and after the last, (R + 1)."""
        left = [dict.fromkeys(self.denoisers, 0)]
        for denoiser, rows in zip(reversed(self.denoisers), reversed(self.batch_rows), strict=True):
            left.append({**left[-1], denoiser: left[-1][denoiser] + rows})
        return list(reversed(left))
