"""What the loop asks of a denoising model, whatever runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """One request's rows of conditioning for one model, unconditional first; all float32."""

    encoder_hidden_states: Floats  # (rows, tokens, width)
    text_embeds: Floats  # (rows, width)
    # (rows, 6) pixels: original height, width, crop top, left, target height, width; a refiner has an aesthetic score
    # in the last two's place
    time_ids: Floats
    timestep_cond: Floats | None = None  # (rows, width), the guidance scale's embedding of a distilled model

    def __len__(self) -> int:
        return len(self.text_embeds)

    def conditional(self) -> Conditioning:
        """The last row only."""
        arrays = (None if array is None else array[-1:] for array in vars(self).values())
        return Conditioning(*arrays)  # type: ignore[arg-type]


class Denoiser(Protocol):
    """Predicts noise for a batch of rows, each at its own timestep.

    The result for a row must not depend on the other rows: same bytes alone and in company.
    """

    def predict(self, sample: Floats, timestep: Floats, conditioning: Sequence[Conditioning]) -> Floats:
        """(R, C, h, w) scaled latents, (R,) timesteps and conditioning of R rows in all → (R, C, h, w) float32."""
        ...
