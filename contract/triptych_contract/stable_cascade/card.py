"""What a served Stable Cascade can do. Sizes in pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from ..cards import ModelCard, TableCard


@dataclass(frozen=True)
class CascadeCard(ModelCard):
    """Stable Cascade: Stage C (`prior`), Stage B (`decoder`) and Stage A (`vqgan`).

    `resolution_multiple` pixels make a latent of Stage C (rounded up) and `latent_dim_scale` latents of Stage B one of Stage C
    (rounded down), as in diffusers; `vqgan_scale_factor` pixels make a latent of Stage B, which takes multiples of
    `latent_multiple` latents. `default_num_inference_steps` are Stage B's.
    """

    denoisers: ClassVar[tuple[str, ...]] = ("prior", "decoder")

    prior_channels: int
    resolution_multiple: float
    latent_dim_scale: float
    vqgan_scale_factor: int
    prior_multiple: int  # Stage C takes multiples of so many of its latents
    latent_multiple: int
    default_prior_num_inference_steps: int
    default_prior_guidance_scale: float
    default_decoder_guidance_scale: float
    own_text_encoder: bool  # whether Stage B's text encoder has other weights than Stage C's
    prior_table: TableCard
    decoder_table: TableCard

    def prior_size(self, pixels: int) -> int:
        """Latents of Stage C along a side of so many pixels: diffusers' `StableCascadePriorPipeline.prepare_latents`."""
        return math.ceil(pixels / self.resolution_multiple)

    def latent_size(self, prior: int) -> int:
        """Latents of Stage B along so many of Stage C: diffusers' `StableCascadeDecoderPipeline.prepare_latents`."""
        return int(prior * self.latent_dim_scale)

    @cached_property
    def legal_sizes(self) -> list[int]:
        """The sides, in pixels, that come out as they are asked for."""
        return [size for size in self._producible() if self.min_size <= size <= self.max_size]

    def _producible(self) -> list[int]:
        sizes = []
        for prior in range(self.prior_multiple, self.prior_size(self.max_size) + 1, self.prior_multiple):
            latents = self.latent_size(prior)
            size = latents * self.vqgan_scale_factor
            if latents and latents % self.latent_multiple == 0 and self.prior_size(size) == prior:
                sizes.append(size)
        return sizes

    def sizes(self, height: int, width: int) -> dict[str, int]:
        sides = {"height": height, "width": width}
        prior = {f"prior_{side}": self.prior_size(pixels) for side, pixels in sides.items()}
        latents = {f"latent_{side}": self.latent_size(prior[f"prior_{side}"]) for side in sides}
        return {"batch": 1, **sides, **prior, **latents}

    @classmethod
    def _nested(cls, card: Mapping[str, Any]) -> dict[str, Any]:
        tables = {name: TableCard(**card[name]) for name in ("prior_table", "decoder_table")}
        return {**super()._nested(card), **tables}
