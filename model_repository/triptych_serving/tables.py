"""Samplers as tables: every step of a diffusers scheduler is one row.

A row holds what the model sees (`timestep`, `input_scale`) and the step itself,

    x ← Σᵢ latents[i]·xᵢ + Σⱼ noise_preds[j]·outⱼ + noise·n,

over the newest latents xᵢ and model outputs outⱼ, newest first. `triptych export` reads the rows off the real scheduler.
"""

from __future__ import annotations

import io
import lzma
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# What a table holds by row.
ROWS = ("timestep", "input_scale", "latents", "noise_preds", "noise", "draws", "clean", "added")
# What a run that starts in the middle has of its own in its first rows: there is no history yet.
WARM_UP = ("latents", "noise_preds", "noise")


@dataclass(frozen=True, eq=False)
class SamplerTable:
    """The rows of one run; R rows, A latents and B model outputs of history, float32."""

    init_noise_sigma: float
    order: int  # model calls a step takes: 2 for Heun and its like, whose last step takes one
    timestep: Floats  # (R,)
    input_scale: Floats  # (R,)
    latents: Floats  # (R, A)
    noise_preds: Floats  # (R, B)
    noise: Floats  # (R,)
    draws: NDArray[np.uint8]  # (R,) how often the scheduler draws noise in this step, used or not
    clean: Floats  # (R,) an image's latents enter before this row as clean·image + added·noise: the scheduler's `add_noise`
    added: Floats  # (R,)

    def __len__(self) -> int:
        return len(self.timestep)

    def __getitem__(self, rows: slice) -> SamplerTable:
        """Some of the rows."""
        return replace(self, **{name: getattr(self, name)[rows] for name in ROWS})

    def advance(
        self, row: int, latents: Sequence[Floats], noise_preds: Sequence[Floats], noise: Floats | None
    ) -> Floats:
        """The step itself: the next latents from the newest latents and model outputs, newest first; (C, h, w)."""
        made = weighted_sum(self.latents[row], latents) + weighted_sum(self.noise_preds[row], noise_preds)
        return made if noise is None else made + self.noise[row] * noise

    def noised(self, clean: Floats, noise: Floats, row: int) -> Floats:
        """Clean latents as noisy as they are before `row`."""
        noised: Floats = self.clean[row] * clean + self.added[row] * noise
        return noised

    def then(self, other: SamplerTable) -> SamplerTable:
        """These rows and, after them, those of `other`."""
        return replace(self, **{name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in ROWS})


@dataclass(frozen=True, eq=False)
class SamplerTables:
    """All step counts of one sampler and schedule, as stored: rows of 1, 2, … steps one after another."""

    offsets: NDArray[np.int32]  # (max steps + 1,)
    order: NDArray[np.uint8]  # ()
    init_noise_sigma: Floats  # (max steps,)
    timestep: Floats
    input_scale: Floats
    latents: Floats
    noise_preds: Floats
    noise: Floats
    draws: NDArray[np.uint8]
    clean: Floats
    added: Floats
    # Rows warm_offsets[r] … warm_offsets[r + 1] below replace rows r, r + 1, … of a run that starts at row r.
    warm_offsets: NDArray[np.int32]  # (all rows + 1,)
    warm_latents: Floats  # (W, A)
    warm_noise_preds: Floats  # (W, B)
    warm_noise: Floats  # (W,)

    def steps(self, num_inference_steps: int, first: int = 0) -> SamplerTable:
        """The table of one step count, from row `first` on, as a run that starts there takes it."""
        begin, end = self.offsets[num_inference_steps - 1] + first, self.offsets[num_inference_steps]
        sigma, order = float(self.init_noise_sigma[num_inference_steps - 1]), int(self.order)
        table = SamplerTable(sigma, order, **{name: getattr(self, name)[begin:end] for name in ROWS})
        return self._warmed_up(table, slice(*self.warm_offsets[begin : begin + 2])) if first else table

    def _warmed_up(self, table: SamplerTable, own: slice) -> SamplerTable:
        changed = {}
        for name in WARM_UP:
            changed[name] = getattr(table, name).copy()
            changed[name][: own.stop - own.start] = getattr(self, f"warm_{name}")[own]
        return replace(table, **changed)


def load_tables(path: Path) -> SamplerTables:
    """Read one `.npz.xz` of tables."""
    with lzma.open(path) as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as arrays:
        return SamplerTables(**{name: arrays[name] for name in arrays.files})


def weighted_sum(coefficients: Floats, history: Sequence[Floats]) -> Floats:
    """Σᵢ coefficients[i]·history[i] of one image, (C, h, w) float32; zeros, which pad a short history, are left out."""
    terms = [scale * x for scale, x in zip(coefficients, history, strict=False) if scale]
    total: Floats = sum(terms[1:], start=terms[0]) if terms else np.zeros_like(history[0])
    return total


def guided(noise_pred: Floats, guidance_scale: float, guidance_rescale: float = 0.0) -> Floats:
    """Classifier-free guidance for one image, its unconditional row first; (rows, C, h, w) → (C, h, w).

    Ho and Salimans, https://arxiv.org/abs/2207.12598, in diffusers' order of rows and operations. An image with one row has
    no difference to add.
    """
    unconditional, conditional = noise_pred[0], noise_pred[-1]
    if len(noise_pred) == 1:
        return np.asarray(conditional)
    combined: Floats = unconditional + np.float32(guidance_scale) * (conditional - unconditional)
    return _rescaled(combined, conditional, np.float32(guidance_rescale)) if guidance_rescale > 0 else combined


def _rescaled(combined: Floats, conditional: Floats, guidance_rescale: np.float32) -> Floats:
    """Guidance with the spread of the conditional prediction: Lin et al., https://arxiv.org/abs/2305.08891, section 3.4."""
    ratio = np.float32(np.std(conditional, ddof=1, dtype=np.float64) / np.std(combined, ddof=1, dtype=np.float64))
    rescaled: Floats = guidance_rescale * (combined * ratio) + (np.float32(1) - guidance_rescale) * combined
    return rescaled
