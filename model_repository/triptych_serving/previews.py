"""Small pictures of latents that are still running: a linear map, fitted at export, and no decoder call."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from triptych_contract.cards import PreviewCard

from .denoiser import Floats
from .job import Job


def preview(job: Job) -> bytes | None:
    """A PNG of what a job's latents will be, as far as its newest step tells; None before a step, or without a map."""
    card = job.phase.previews.get(job.denoiser)
    if card is None or not job.noise_preds:
        return None
    file = io.BytesIO()
    Image.fromarray(draw(card, estimate(job))).save(file, "PNG")
    return file.getvalue()


def estimate(job: Job) -> Floats:
    """The clean latents that the newest prediction means, (C, h, w); the latents themselves where that is not known.

    At signal α and noise σ latents are x = α·x₀ + σ·ε, and the model gave ε, or v = α·ε − σ·x₀ (Salimans and Ho,
    https://arxiv.org/abs/2202.00512) for latents of unit variance.
    """
    latents = job.latents[0]
    if job.step == len(job.table):
        return latents
    clean, added = job.table.clean[job.step], job.table.added[job.step]
    if not np.isfinite(added) or clean == 0:
        return latents
    if job.phase.prediction_type == "epsilon":
        latents = (latents - added * job.noise_preds[0]) / clean
    elif job.phase.prediction_type == "v_prediction":
        norm = np.hypot(clean, added)
        latents = (clean / norm * latents - added * job.noise_preds[0]) / norm
    return latents


def draw(card: PreviewCard, latents: Floats) -> NDArray[np.uint8]:
    """(C, h, w) latents as (patch·h, patch·w, 3) pixels."""
    weights, bias, patch = np.asarray(card.weights, np.float32), np.asarray(card.bias, np.float32), card.patch
    height, width = latents.shape[1:]
    values = np.einsum("chw,ck->hwk", latents, weights) + bias
    patches = values.reshape(height, width, patch, patch, 3).transpose(0, 2, 1, 3, 4)
    pixels = np.clip(np.nan_to_num(patches), 0, 1).reshape(height * patch, width * patch, 3)
    return np.asarray(np.rint(pixels * 255), np.uint8)
