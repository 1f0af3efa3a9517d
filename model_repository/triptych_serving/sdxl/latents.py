"""Where an SDXL request's latents come from: noise, or a picture's latents with noise added, as diffusers makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from triptych_contract.sdxl.card import LatentScale

from ..denoiser import Floats
from ..noise import TorchGenerator
from ..phase import Blend
from ..tables import SamplerTable

# What a UNet that reads masks is told of one beside its latents, one row for all of a request's: mask and latents outside it.
MASKED_PICTURE = "masked_picture"


@dataclass(frozen=True, eq=False)
class EncodedPicture:
    """What the VAE encoder made of a request's picture, each None where the request goes without.

    Attributes:
        moments: (2·C, h, w); of a model that reads masks None where latents are to begin as noise alone.
        mask: (1, h, w), 1 where it is painted anew.
        outside: of a model that reads masks, the moments of the picture that is grey where it is painted anew.
    """

    moments: Floats | None
    mask: Floats | None
    outside: Floats | None = None


class Begun(NamedTuple):
    """The latents before the first row, (C, h, w), and what a mask keeps, or what a model that reads masks is told of it."""

    latents: Floats
    blend: Blend | None = None
    masked_picture: Floats | None = None  # (1, 1 + C, h, w)


def initial(
    table: SamplerTable,
    shape: tuple[int, ...],
    generator: TorchGenerator,
    picture: EncodedPicture | None,
    strength: float | None,
    scale: LatentScale,
) -> Begun:
    """What a request begins with.

    The order of the draws is diffusers': the posterior's, the noise's, and with a mask one for the posterior of what is outside
    it, which only models that read masks look at.
    """
    clean = None if picture is None or picture.moments is None else _sampled(picture.moments, generator, scale)
    noise = generator.randn(shape)
    mask = None if picture is None else picture.mask
    if clean is None or (mask is not None and strength == 1.0):
        latents = noise * np.float32(table.init_noise_sigma)
    else:
        latents = table.noised(clean, noise, 0)
    if picture is not None and picture.outside is not None and mask is not None:
        outside = _sampled(picture.outside, generator, scale)
        return Begun(latents, masked_picture=np.concatenate([mask, outside])[None])
    if clean is None or mask is None:
        return Begun(latents)
    generator.randn(shape)
    return Begun(latents, Blend(clean, noise, mask))


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
