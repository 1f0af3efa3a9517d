"""The settings of a Stable Cascade request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..parameters import Integer, Number, OfModel, parameter
from ..settings import MAX_GUIDANCE_SCALE, Settings
from .card import CascadeCard


@dataclass(frozen=True)
class CascadeSettings(Settings):
    """A checked request; `num_inference_steps` are Stage B's, `prior_num_inference_steps` Stage C's."""

    prior_num_inference_steps: int = parameter(
        Integer(1, OfModel(lambda card: card.prior_table.max_steps, "100")),
        "Stage C's steps.",
        default=OfModel(lambda card: card.default_prior_num_inference_steps),
        group="stable cascade",
        label="Stage C steps",
        main=True,
        options=("--prior-steps",),
        a1111="Steps",
    )
    prior_guidance_scale: float = parameter(
        Number(0, MAX_GUIDANCE_SCALE),
        "How closely Stage C follows the prompt; at 1 or below guidance is off.",
        default=OfModel(lambda card: card.default_prior_guidance_scale),
        group="stable cascade",
        label="Stage C guidance",
        main=True,
        options=("--prior-guidance",),
        a1111="CFG scale",
    )
    num_inference_steps: int = parameter(
        Integer(1, OfModel(lambda card: card.decoder_table.max_steps, "100")),
        "Stage B's steps.",
        default=OfModel(lambda card: card.default_num_inference_steps),
        group="stable cascade",
        label="Stage B steps",
        main=True,
        options=("--steps",),
        a1111="Decoder steps",
    )
    decoder_guidance_scale: float = parameter(
        Number(0, MAX_GUIDANCE_SCALE),
        "How closely Stage B follows the prompt; at 1 or below guidance is off.",
        default=OfModel(lambda card: card.default_decoder_guidance_scale),
        group="stable cascade",
        label="Stage B guidance",
        main=True,
        options=("--decoder-guidance",),
        a1111="Decoder CFG scale",
    )

    @property
    def prior_guided(self) -> bool:
        """Tell whether Stage C has an unconditional row beside the conditional one."""
        return self.prior_guidance_scale > 1.0

    @property
    def decoder_guided(self) -> bool:
        """Tell the same of Stage B."""
        return self.decoder_guidance_scale > 1.0

    @classmethod
    def sides(cls, card: CascadeCard, given: Mapping[str, Any]) -> Sequence[int]:  # noqa: ARG003 - the same for all
        """Give the sizes that diffusers' rounding to latents and back leaves as they are."""
        return card.legal_sizes
