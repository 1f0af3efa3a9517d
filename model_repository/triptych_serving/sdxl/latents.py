"""Where an SDXL request's latents come from: noise, or a picture's latents with noise added, as diffusers makes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from triptych_contract.sdxl.card import LatentScale

from ..denoiser import Floats
from ..noise import TorchGenerator
from ..phase import Blend
from ..tables import SamplerTable


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """What the VAE encoder made of a request's picture: moments (2·C, h, w), and a mask (1, h, w) or None."""

    moments: Floats
    mask: Floats | None


def initial(
    table: SamplerTable,
    shape: tuple[int, ...],
    generator: TorchGenerator,
    picture: EncodedPicture | None,
    strength: float | None,
    scale: LatentScale,
) -> tuple[Floats, Blend | None]:
    """The latents before the first row, (C, h, w), and what a mask keeps.

    The order of the draws is diffusers': the posterior's, the noise's, and with a mask one for the masked picture's posterior,
    which only models of nine channels look at.
    """
    if picture is None:
        return generator.randn(shape) * np.float32(table.init_noise_sigma), None
    clean = _sampled(picture.moments, generator, scale)
    noise = generator.randn(shape)
    if picture.mask is None:
        return table.noised(clean, noise, 0), None
    generator.randn(shape)
    pure = strength == 1.0
    latents = noise * np.float32(table.init_noise_sigma) if pure else table.noised(clean, noise, 0)
    return latents, Blend(clean, noise, picture.mask)


def _sampled(moments: Floats, generator: TorchGenerator, scale: LatentScale) -> Floats:
    """A sample of the posterior, at the scale of the model's latents (diffusers' `DiagonalGaussianDistribution`)."""
    mean, log_variance = np.split(moments, 2)
    std = np.exp(np.float32(0.5) * np.clip(log_variance, -30.0, 20.0))
    sample = mean + std * generator.randn(mean.shape)
    if scale.mean is not None and scale.std is not None:
        sample = (sample - _channels(scale.mean)) / _channels(scale.std)
    scaled: Floats = sample * np.float32(scale.factor)
    return scaled


def _channels(values: object) -> Floats:
    return np.asarray(values, np.float32)[:, None, None]
