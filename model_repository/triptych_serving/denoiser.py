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
    """One request's rows of conditioning, unconditional first; 2 rows with guidance, else 1. All float32."""

    encoder_hidden_states: Floats  # (rows, tokens, width)
    text_embeds: Floats  # (rows, width)
    time_ids: Floats  # (rows, 6) pixels: original height, width, crop top, left, target height, width

    def __len__(self) -> int:
        return len(self.text_embeds)


class Denoiser(Protocol):
    """Predicts noise for a batch of rows, each at its own timestep.

    The result for a row must not depend on the other rows: same bytes alone and in company.
    """

    def predict(self, sample: Floats, timestep: Floats, conditioning: Sequence[Conditioning]) -> Floats:
        """(R, C, h, w) scaled latents, (R,) timesteps and conditioning of R rows in all → (R, C, h, w) float32."""
        ...
