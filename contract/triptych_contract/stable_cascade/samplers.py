"""What a served Stable Cascade can sample with: one sampler, in so many steps."""

from __future__ import annotations

from ..family import Samplers
from .card import CascadeCard

SAMPLER = "DDPMWuerstchen"


def samplers(card: CascadeCard) -> Samplers:
    """Tell a model's sampler and steps."""
    steps = {
        "prior_num_inference_steps": {
            "default": card.default_prior_num_inference_steps,
            "max": card.prior_table.max_steps,
        },
        "num_inference_steps": {"default": card.default_num_inference_steps, "max": card.decoder_table.max_steps},
    }
    prior, decoder = (f"1 to {given['max']} steps (default: {given['default']})" for given in steps.values())
    line = f"Stable Cascade has one sampler, {SAMPLER}: {prior} in Stage C, {decoder} in Stage B"
    return Samplers({"sampler": SAMPLER, "steps": steps}, [line])
