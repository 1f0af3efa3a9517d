"""Where a request's latents come from: noise, or a picture's latents with noise added, as diffusers makes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .manifest import LatentScale
from .noise import TorchGenerator
from .settings import Settings
from .tables import SamplerTable

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Start:
    """What the VAE encoder made of a request's picture: moments (2·C, h, w), and a mask (1, h, w) or None."""

    moments: Floats
    mask: Floats | None


@dataclass(frozen=True, eq=False)
class Blend:
    """What is kept of a picture under a mask: (C, h, w) latents, the one noise that is added to them, (1, h, w) mask."""

    clean: Floats
    noise: Floats
    mask: Floats

    def apply(self, latents: Floats, table: SamplerTable, row: int) -> Floats:
        """The latents that go into `row`: what is kept, as noisy as that row wants it, around what is painted."""
        kept = self.clean
        if row < len(table):
            kept = _noised(self.clean, self.noise, table, row)
        blended: Floats = (np.float32(1) - self.mask) * kept + self.mask * latents
        return blended


def initial(
    settings: Settings,
    table: SamplerTable,
    shape: tuple[int, ...],
    generator: TorchGenerator,
    start: Start | None,
    scale: LatentScale,
) -> tuple[Floats, Blend | None]:
    """The latents before the first row, (C, h, w), and what a mask keeps.

    The order of the draws is diffusers': the posterior's, the noise's, and with a mask one for the masked picture's posterior,
    which only models of nine channels look at.
    """
    if start is None:
        return generator.randn(shape) * np.float32(table.init_noise_sigma), None
    clean = _sampled(start.moments, generator, scale)
    noise = generator.randn(shape)
    if start.mask is None:
        return _noised(clean, noise, table, 0), None
    generator.randn(shape)
    pure = settings.strength == 1.0
    latents = noise * np.float32(table.init_noise_sigma) if pure else _noised(clean, noise, table, 0)
    return latents, Blend(clean, noise, start.mask)


def _noised(clean: Floats, noise: Floats, table: SamplerTable, row: int) -> Floats:
    noised: Floats = table.clean[row] * clean + table.added[row] * noise
    return noised


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
