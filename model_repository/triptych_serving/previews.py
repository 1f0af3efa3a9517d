"""Draw small pictures of images that are still being made: by a linear map, fitted at export, without the decoder."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triptych_contract.cards import PreviewCard

from .denoiser import Floats, Made
from .job import Job


def preview(job: Job) -> bytes | None:
    """Draw a PNG of what a job's image will be, as far as its newest step tells.

    None before its first step, or if the model has no map.
    """
    card = job.phase.previews.get(job.denoiser)
    if card is None or job.newest is None:
        return None
    file = io.BytesIO()
    Image.fromarray(draw(card, estimate(job, job.newest))).save(file, "PNG")
    return file.getvalue()


def estimate(job: Job, newest: Made) -> Floats:
    """Compute the clean latents that a prediction implies, (C, h, w); the latents as they are if that is unknown.

    With signal α and noise σ, latents are x = α·x₀ + σ·ε. The model predicts ε or, of latents scaled to unit variance,
    v = α·ε − σ·x₀ (Salimans and Ho, https://arxiv.org/abs/2202.00512).
    """
    row, latents, noise_pred = newest
    if row == len(job.table):
        return latents
    clean, added = job.table.clean[row], job.table.added[row]
    if not np.isfinite(added) or clean == 0:
        return latents
    if job.phase.prediction_type == "epsilon":
        latents = (latents - added * noise_pred) / clean
    elif job.phase.prediction_type == "v_prediction":
        norm = np.hypot(clean, added)
        latents = (clean / norm * latents - added * noise_pred) / norm
    return latents


def draw(card: PreviewCard, latents: Floats) -> NDArray[np.uint8]:
    """Map latents to pixels: (C, h, w) float32 → (patch·h, patch·w, 3) uint8."""
    weights, bias, patch = np.asarray(card.weights, np.float32), np.asarray(card.bias, np.float32), card.patch
    height, width = latents.shape[1:]
    values = np.einsum("chw,ck->hwk", latents, weights) + bias
    patches = values.reshape(height, width, patch, patch, 3).transpose(0, 2, 1, 3, 4)
    pixels = np.clip(np.nan_to_num(patches), 0, 1).reshape(height * patch, width * patch, 3)
    return np.asarray(np.rint(pixels * 255), np.uint8)
