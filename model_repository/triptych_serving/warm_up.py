"""A denoiser's first steps, before any request: they make it warm and tell what it takes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from triptych_contract.cards import ModelCard

from .denoiser import Denoiser, Floats
from .invariance import example
from .job import Clock

STEPS = 2
# A step of the model's own size that takes longer is left to the first request: minutes for a large model on a processor.
MAX_STEP_SECONDS = 3.0
ROWS = 2  # a guided request's


def warm_up(
    denoiser: Denoiser, inputs: Mapping[str, Mapping[str, Any]], card: ModelCard, clock: Clock = time.monotonic
) -> float:
    """Run the model at its smallest size and, unless that says that it would take long, at its own.

    Args:
        inputs: its tensor specs, as in the manifest.

    Returns:
        Seconds per unit of cost (rows × latent pixels).
    """
    seconds = _seconds_per_cost(denoiser, inputs, card.smallest_sizes, clock)
    own_size = _cost(example(inputs, card.default_sizes, ROWS)[0])
    if seconds * own_size > MAX_STEP_SECONDS:
        return seconds
    return _seconds_per_cost(denoiser, inputs, card.default_sizes, clock)


def _seconds_per_cost(
    denoiser: Denoiser, inputs: Mapping[str, Mapping[str, Any]], sizes: Mapping[str, int], clock: Clock
) -> float:
    """Of the quickest step: other models still load beside it."""
    sample, timestep, conditioning = example(inputs, sizes, ROWS)
    seconds = []
    for _ in range(STEPS):
        began = clock()
        denoiser.predict(sample, timestep, conditioning)
        seconds.append(clock() - began)
    for one in conditioning:
        denoiser.release(one)
    return min(seconds) / _cost(sample)


def _cost(sample: Floats) -> int:
    rows, _, height, width = sample.shape
    return rows * height * width
