"""Requests that have as little in common as a model allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .card import CascadeCard


def mixed(k: int, _n: int, card: CascadeCard) -> dict[str, Any]:
    """Give what sets the k-th of n small requests apart."""
    return {
        "prior_num_inference_steps": min(2 + k % 5, card.prior_table.max_steps),
        "prior_guidance_scale": 4.0 if k % 2 else 0.0,
        "num_inference_steps": min(2 + k % 3, card.decoder_table.max_steps),
        "decoder_guidance_scale": 2.0 if k % 3 else 0.0,
    }


def called(request: Mapping[str, Any]) -> str:
    """Name one of them, and its `model`, as people tell it from the others."""
    return f"{request['model']} in {request['prior_num_inference_steps']} + {request['num_inference_steps']} steps"
