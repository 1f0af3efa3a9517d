"""Samplers as tables: every step of a diffusers scheduler is one row, applied to a whole mixed batch at once.

A row holds what the model sees (`timestep`, `input_scale`) and the step itself,

    x ← Σᵢ latents[i]·xᵢ + Σⱼ noise_preds[j]·outⱼ + noise·n,

over the newest latents xᵢ and model outputs outⱼ, newest first. `triptych export` solves the rows from the real scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SamplerTable:
    """The rows of one sampler, schedule and step count; R rows, A latents and B model outputs of history, float32."""

    init_noise_sigma: float
    timestep: Floats  # (R,)
    input_scale: Floats  # (R,)
    latents: Floats  # (R, A)
    noise_preds: Floats  # (R, B)
    noise: Floats  # (R,)
    draws: NDArray[np.uint8]  # (R,) how often the scheduler draws noise in this step, used or not

    def __len__(self) -> int:
        return len(self.timestep)


@dataclass(frozen=True, eq=False)
class SamplerTables:
    """All step counts of one sampler and schedule, as stored: rows of 1, 2, … steps one after another."""

    offsets: NDArray[np.int32]  # (max steps + 1,)
    init_noise_sigma: Floats  # (max steps,)
    timestep: Floats
    input_scale: Floats
    latents: Floats
    noise_preds: Floats
    noise: Floats
    draws: NDArray[np.uint8]

    def steps(self, num_inference_steps: int) -> SamplerTable:
        """The table of one step count."""
        rows = slice(*self.offsets[num_inference_steps - 1 : num_inference_steps + 1])
        return SamplerTable(
            init_noise_sigma=float(self.init_noise_sigma[num_inference_steps - 1]),
            timestep=self.timestep[rows],
            input_scale=self.input_scale[rows],
            latents=self.latents[rows],
            noise_preds=self.noise_preds[rows],
            noise=self.noise[rows],
            draws=self.draws[rows],
        )


def load_tables(path: Path) -> SamplerTables:
    """Read one `.npz` of tables."""
    with np.load(path, allow_pickle=False) as arrays:
        return SamplerTables(**{name: arrays[name] for name in arrays.files})


def weighted_sum(coefficients: Sequence[Floats], histories: Sequence[Sequence[Floats]]) -> Floats:
    """For each image b, Σᵢ coefficients[b][i]·histories[b][i]; (B, C, h, w) float32.

    One rounding order for every image, whatever its neighbours: the sum starts at +0, so the zeros that pad a short history
    change no bit.
    """
    depth = max(map(len, histories))
    total = np.zeros((len(histories), *histories[0][0].shape), np.float32)
    for i in range(depth):
        used = [b for b, history in enumerate(histories) if i < len(history) and coefficients[b][i] != 0]
        if used:
            scale = np.array([coefficients[b][i] for b in used], np.float32)[:, None, None, None]
            total[used] += scale * np.stack([histories[b][i] for b in used])
    return total


def guided(noise_pred: Floats, rows: NDArray[np.int64], guidance_scale: Floats) -> Floats:
    """Classifier-free guidance for B images of `rows` rows each, unconditional row first; (R, C, h, w) → (B, C, h, w).

    Ho and Salimans, https://arxiv.org/abs/2207.12598, in diffusers' order of rows and operations. An image with one row has
    no difference to add.
    """
    last = np.cumsum(rows) - 1
    unconditional, conditional = noise_pred[last - rows + 1], noise_pred[last]
    combined: Floats = unconditional + guidance_scale[:, None, None, None] * (conditional - unconditional)
    return combined
