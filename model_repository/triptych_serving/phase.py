"""A request's phases, runs of rows over latents of one shape: SDXL has one, Stable Cascade one for Stage C and one for B."""

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
    """What is kept of a picture under a mask: (C, h, w) latents, the one noise that is added to them, (1, h, w) mask."""

    clean: Floats
    noise: Floats
    mask: Floats

    def apply(self, latents: Floats, table: SamplerTable, row: int) -> Floats:
        """The latents that go into `row`: what is kept, as noisy as that row wants it, around what is painted."""
        kept = table.noised(self.clean, self.noise, row) if row < len(table) else self.clean
        blended: Floats = (np.float32(1) - self.mask) * kept + self.mask * latents
        return blended


@dataclass(frozen=True, eq=False)
class Start:
    """What a phase begins with: latents (C, h, w), every model's conditioning by stage name, and what a mask keeps."""

    latents: Floats
    conditionings: Mapping[str, Conditioning]
    blend: Blend | None = None


class Outline(NamedTuple):
    """A phase before there is anything to do it to: its rows, and the shape of its latents."""

    walk: Walk
    shape: tuple[int, int, int]  # (C, h, w)


@dataclass(frozen=True, eq=False)
class Phase:
    """Rows of one table over latents of one shape.

    `begin` draws the first latents from the request's stream of noise; it is given the latents that the phase before
    ended with, or None. `one_timestep` names the models whose batches hold rows of one timestep only.
    """

    walk: Walk
    shape: tuple[int, int, int]  # (C, h, w) of the latents
    guidance_scale: float
    begin: Callable[[TorchGenerator, Floats | None], Start]
    guidance_rescale: float = 0.0
    prediction_type: str = "epsilon"
    previews: Mapping[str, PreviewCard] = field(default_factory=dict)
    one_timestep: Collection[str] = ()

    @property
    def pixels(self) -> int:
        return self.shape[-2] * self.shape[-1]

    def cost(self, step: int) -> dict[str, int]:
        """What is left before `step` for each model, in rows × latent pixels."""
        return {denoiser: rows * self.pixels for denoiser, rows in self.walk.remaining[step].items()}


def noise_alone(
    walk: Walk, shape: tuple[int, int, int], generator: TorchGenerator, conditionings: Mapping[str, Conditioning]
) -> Start:
    """The start of a phase that has nothing but noise to begin with."""
    return Start(generator.randn(shape) * np.float32(walk.table.init_noise_sigma), conditionings)
