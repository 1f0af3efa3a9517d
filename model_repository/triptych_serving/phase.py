"""The phases of a request: steps over latents of one shape. SDXL has one; Stable Cascade has one for Stage C and one for B."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from triptych_contract.cards import PreviewCard

from .denoiser import Conditioning, Floats
from .noise import TorchGenerator
from .tables import SamplerTable
from .walk import Walk


@dataclass(frozen=True, eq=False)
class Blend:
    """Keep the part of a picture that is outside a mask."""

    clean: Floats  # (C, h, w) latents of the picture
    noise: Floats  # (C, h, w), the same noise at every step
    mask: Floats  # (1, h, w), 1 where it is painted anew

    def apply(self, latents: Floats, table: SamplerTable, row: int) -> Floats:
        """Return the latents that go into `row` of the table, (C, h, w)."""
        blended: Floats = self.kept(table, row) + self.mask * latents
        return blended

    def kept(self, table: SamplerTable, row: int) -> Floats:
        """Return what is outside the mask before `row`, (C, h, w), and 0 within.

        It is the picture's, with as much noise as latents have at that row; after the last row with none.
        """
        kept = table.noised(self.clean, self.noise, row) if row < len(table) else self.clean
        outside: Floats = (np.float32(1) - self.mask) * kept
        return outside


@dataclass(frozen=True, eq=False)
class Start:
    """What a phase begins with."""

    latents: Floats  # (C, h, w)
    conditionings: Mapping[str, Conditioning]  # by model
    blend: Blend | None = None  # for a request with a mask


class Outline(NamedTuple):
    """What is known of a phase from a request's settings alone."""

    walk: Walk
    shape: tuple[int, int, int]  # (C, h, w)


@dataclass(frozen=True, eq=False)
class Phase:
    """A walk through one sampler table over latents of one shape.

    Attributes:
        begin: draws the first latents from the request's stream of noise; it is given the last latents of the phase before, or
            None.
        previews: by model, how to draw a preview of its latents.
        tokens: of the prompt, as the models read it.
        one_timestep: the models whose batches must have one timestep for all rows.
    """

    walk: Walk
    shape: tuple[int, int, int]  # (C, h, w)
    guidance_scale: float
    begin: Callable[[TorchGenerator, Floats | None], Start]
    guidance_rescale: float = 0.0
    prediction_type: str = "epsilon"
    previews: Mapping[str, PreviewCard] = field(default_factory=dict)
    one_timestep: Collection[str] = ()
    tokens: int = 0

    @property
    def pixels(self) -> int:
        """Pixels of the latents, h × w."""
        return self.shape[-2] * self.shape[-1]

    def cost(self, step: int) -> dict[str, int]:
        """Return the work that is left before `step`, by model, in rows of a batch × latent pixels."""
        return {denoiser: rows * self.pixels for denoiser, rows in self.walk.remaining[step].items()}


def noise_alone(
    walk: Walk, shape: tuple[int, int, int], generator: TorchGenerator, conditionings: Mapping[str, Conditioning]
) -> Start:
    """Return the start of a phase that begins with noise only; it draws the noise."""
    return Start(generator.randn(shape) * np.float32(walk.table.init_noise_sigma), conditionings)
