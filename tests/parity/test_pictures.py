"""Pictures and masks are seen as diffusers sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor

from triptych_serving.pictures import latent_mask, pixels

from ..serving.drawn import file, picture

SCALE = 8


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
@pytest.mark.parametrize("size", [(64, 64), (32, 96), (75, 50)])
def test_a_picture_is_seen_as_diffusers_sees_it(mode, size):
    image = picture(mode)
    height, width = size[1] // 8 * 8, size[0] // 8 * 8
    theirs = VaeImageProcessor(vae_scale_factor=SCALE).preprocess(image.convert("RGB"), height, width)
    np.testing.assert_array_equal(pixels("init_image", file(image), height, width), theirs.numpy())


def test_a_mask_is_seen_as_diffusers_sees_it():
    image = picture("L")
    options = {"do_normalize": False, "do_binarize": True, "do_convert_grayscale": True}
    theirs = VaeImageProcessor(vae_scale_factor=SCALE, **options).preprocess(image, 64, 96)
    theirs = torch.nn.functional.interpolate(theirs, size=(8, 12))
    ours = latent_mask("mask", file(image), 64, 96, SCALE)
    np.testing.assert_array_equal(ours, theirs.numpy())
    assert 0 < ours.mean() < 1
