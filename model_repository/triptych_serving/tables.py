"""Samplers as tables: each row is one step of a diffusers scheduler.

A row holds what the model sees (`timestep`, `input_scale`) and the step itself,

    x ← Σᵢ latents[i]·xᵢ + Σⱼ noise_preds[j]·outⱼ + noise·n,

over the latest latents xᵢ and model outputs outⱼ, newest first, and fresh noise n. `triptych export` reads the numbers off the
real scheduler.
"""

from __future__ import annotations

import io
import lzma
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .manifest import ManifestError

Floats = NDArray[np.float32]
MAX_BYTES = 16 << 20  # unpacked; those of 100 steps have about 1 MB
# The columns of a table.
ROWS = ("timestep", "input_scale", "latents", "noise_preds", "noise", "draws", "clean", "added")
# The columns whose first rows differ in a run that starts in the middle, since there is no history yet.
WARM_UP = ("latents", "noise_preds", "noise")


@dataclass(frozen=True, eq=False)
class SamplerTable:
    """The R rows of one run; a step reads the last A latents and the last B model outputs. All float32 but `draws`."""

    init_noise_sigma: float
    order: int  # model calls, and so rows, of one step of the user's: 2 for samplers like Heun, whose last step has one
    timestep: Floats  # (R,)
    input_scale: Floats  # (R,)
    latents: Floats  # (R, A)
    noise_preds: Floats  # (R, B)
    noise: Floats  # (R,)
    draws: NDArray[np.uint8]  # (R,) how often the scheduler draws noise in this step, whether it uses it or not
    # The scheduler's `add_noise`: an image's latents are clean·image + added·noise before this row.
    clean: Floats  # (R,)
    added: Floats  # (R,)

    def __len__(self) -> int:
        return len(self.timestep)

    def __getitem__(self, rows: slice) -> SamplerTable:
        """Return the table of some of the rows."""
        return replace(self, **{name: getattr(self, name)[rows] for name in ROWS})

    def advance(
        self, row: int, latents: Sequence[Floats], noise_preds: Sequence[Floats], noise: Floats | None
    ) -> Floats:
        """Take the step of `row`: return the next latents, (C, h, w).

        `latents` and `noise_preds` are the history, newest first, each (C, h, w); `noise` is None if the step adds none.
        """
        made = weighted_sum(self.latents[row], latents) + weighted_sum(self.noise_preds[row], noise_preds)
        return made if noise is None else made + self.noise[row] * noise

    def noised(self, clean: Floats, noise: Floats, row: int) -> Floats:
        """Add `noise` to clean latents, as much as latents have before `row`; all (C, h, w)."""
        noised: Floats = self.clean[row] * clean + self.added[row] * noise
        return noised

    def then(self, other: SamplerTable) -> SamplerTable:
        """Return the table of these rows followed by those of `other`."""
        return replace(self, **{name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in ROWS})


@dataclass(frozen=True, eq=False)
class SamplerTables:
    """The tables of all step counts of one sampler and schedule, as stored: that of 1 step, then that of 2 steps, and so on.

    The columns are those of `SamplerTable`, each over the rows of all step counts.
    """

    offsets: NDArray[np.int32]  # (max steps + 1,): rows offsets[n - 1] to offsets[n] are those of n steps
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
    # A run that starts at row r has rows warm_offsets[r] to warm_offsets[r + 1] of these in place of its rows r, r + 1, ….
    warm_offsets: NDArray[np.int32]  # (all rows + 1,)
    warm_latents: Floats  # (W, A)
    warm_noise_preds: Floats  # (W, B)
    warm_noise: Floats  # (W,)

    def steps(self, num_inference_steps: int, first: int = 0) -> SamplerTable:
        """Return the table of one step count, from row `first` on, for a run that starts there."""
        begin, end = self.offsets[num_inference_steps - 1] + first, self.offsets[num_inference_steps]
        sigma, order = float(self.init_noise_sigma[num_inference_steps - 1]), int(self.order)
        table = SamplerTable(sigma, order, **{name: getattr(self, name)[begin:end] for name in ROWS})
        return self._warmed_up(table, slice(*self.warm_offsets[begin : begin + 2])) if first else table

    def _warmed_up(self, table: SamplerTable, own: slice) -> SamplerTable:
        """Replace the first rows of a table that starts in the middle by those in rows `own` of the warm-up."""
        changed = {}
        for name in WARM_UP:
            changed[name] = getattr(table, name).copy()
            changed[name][: own.stop - own.start] = getattr(self, f"warm_{name}")[own]
        return replace(table, **changed)


def load_tables(path: Path) -> SamplerTables:
    """Read one `.npz.xz` file of tables. No pickles.

    Raises:
        ManifestError: it is larger than MAX_BYTES when unpacked, or holds no tables.
    """
    try:
        with np.load(io.BytesIO(_unpacked(path)), allow_pickle=False) as arrays:
            return SamplerTables(**{name: arrays[name] for name in arrays.files})
    except Exception as error:  # whatever a harmed file leads to
        raise ManifestError(f"{path}: no sampler tables ({str(error)[:200]}); export the model again") from None


def _unpacked(path: Path) -> bytes:
    with lzma.open(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("packed twice")
    return data


def weighted_sum(coefficients: Floats, history: Sequence[Floats]) -> Floats:
    """Return Σᵢ coefficients[i]·history[i], (C, h, w) float32, over those whose coefficient is not 0: a history may be short."""
    terms = [scale * x for scale, x in zip(coefficients, history, strict=False) if scale]
    total: Floats = sum(terms[1:], start=terms[0]) if terms else np.zeros_like(history[0])
    return total


def guided(noise_pred: Floats, guidance_scale: float, guidance_rescale: float = 0.0) -> Floats:
    """Apply classifier-free guidance to one image's rows, unconditional first: (rows, C, h, w) → (C, h, w).

    Ho and Salimans, https://arxiv.org/abs/2207.12598, in diffusers' order of rows and operations. A single row is returned as
    it is: there is no guidance at this step.
    """
    unconditional, conditional = noise_pred[0], noise_pred[-1]
    if len(noise_pred) == 1:
        return np.asarray(conditional)
    combined: Floats = unconditional + np.float32(guidance_scale) * (conditional - unconditional)
    return _rescaled(combined, conditional, np.float32(guidance_rescale)) if guidance_rescale > 0 else combined


def _rescaled(combined: Floats, conditional: Floats, guidance_rescale: np.float32) -> Floats:
    """Bring the guided prediction's standard deviation nearer to the conditional one's.

    Lin et al., https://arxiv.org/abs/2305.08891, section 3.4.
    """
    ratio = np.float32(np.std(conditional, ddof=1, dtype=np.float64) / np.std(combined, ddof=1, dtype=np.float64))
    rescaled: Floats = guidance_rescale * (combined * ratio) + (np.float32(1) - guidance_rescale) * combined
    return rescaled
