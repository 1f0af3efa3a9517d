"""The settings of a Stable Cascade request."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import checks
from ..cards import CascadeCard
from ..errors import InvalidRequest
from ..settings import Settings, common, guidance, known


@dataclass(frozen=True)
class CascadeSettings(Settings):
    """A checked request; `num_inference_steps` are Stage B's, `prior_num_inference_steps` Stage C's."""

    prior_num_inference_steps: int
    prior_guidance_scale: float
    num_inference_steps: int
    decoder_guidance_scale: float

    @property
    def prior_guided(self) -> bool:
        """Whether Stage C has an unconditional row beside the conditional one."""
        return self.prior_guidance_scale > 1.0

    @property
    def decoder_guided(self) -> bool:
        """The same of Stage B."""
        return self.decoder_guidance_scale > 1.0

    @classmethod
    def parse(cls, given: Mapping[str, Any], model: CascadeCard) -> CascadeSettings:
        """Check raw inputs (bytes, int, float, bool by name; absent = default) against what `model` can do.

        Raises:
            InvalidRequest: names the field, what was given and what is legal.
        """
        known(given, CascadeSettings)
        return cls(
            **common(given),
            height=_side("height", given.get("height", model.default_height), model),
            width=_side("width", given.get("width", model.default_width), model),
            prior_num_inference_steps=checks.integer(
                "prior_num_inference_steps",
                given.get("prior_num_inference_steps", model.default_prior_num_inference_steps),
                1,
                model.prior_table.max_steps,
            ),
            prior_guidance_scale=guidance("prior_guidance_scale", given, model.default_prior_guidance_scale),
            num_inference_steps=checks.integer(
                "num_inference_steps",
                given.get("num_inference_steps", model.default_num_inference_steps),
                1,
                model.decoder_table.max_steps,
            ),
            decoder_guidance_scale=guidance("decoder_guidance_scale", given, model.default_decoder_guidance_scale),
        )


def _side(field: str, value: int, model: CascadeCard) -> int:
    """A size that diffusers' rounding to latents and back leaves as it is."""
    legal = model.legal_sizes
    if value not in legal:
        at = bisect(legal, value)
        nearest = " or ".join(str(size) for size in legal[max(0, at - 1) : at + 1])
        raise InvalidRequest(field, value, f"{len(legal)} sizes from {legal[0]} to {legal[-1]}, the nearest {nearest}")
    return int(value)
