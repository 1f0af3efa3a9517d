"""Requests that have as little in common as a model allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .card import SdxlCard


def mixed(k: int, n: int, card: SdxlCard) -> dict[str, Any]:
    """Give what sets the k-th of n small requests apart."""
    names = sorted(card.samplers)
    sampler = names[k * len(names) // n]
    schedules = card.samplers[sampler].schedules
    schedule = list(schedules)[k % len(schedules)]
    return {
        "num_inference_steps": min(2 + k % 5, schedules[schedule].max_steps),
        "guidance_scale": 5.0 if k % 2 else 0.0,
        "sampler": sampler,
        "schedule": schedule,
    }


def called(request: Mapping[str, Any]) -> str:
    """Name one of them, which has its `model` as well, as people tell it from the others."""
    return f"{request['sampler']}/{request['schedule']}"
