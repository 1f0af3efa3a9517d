"""Guided predictions are diffusers'."""

from __future__ import annotations

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg

from triptych_serving.tables import guided


def test_rescaled_guidance_is_diffusers():
    random = np.random.default_rng(0)
    pred = random.standard_normal((4, 4, 8, 8)).astype(np.float32)
    both = guided(pred[:2], 7.5, 0.7), guided(pred[2:], 3.0)
    tensors = torch.from_numpy(pred)
    combined = tensors[0] + 7.5 * (tensors[1] - tensors[0])
    theirs = rescale_noise_cfg(combined[None], tensors[1][None], 0.7)[0]
    np.testing.assert_allclose(both[0], theirs.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(both[1], pred[2] + np.float32(3) * (pred[3] - pred[2]))
