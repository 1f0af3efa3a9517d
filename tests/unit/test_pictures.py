"""Pictures that come with requests: what diffusers sees, and damaged ones that harm nobody."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageDraw

from triptych_contract.errors import InvalidRequest
from triptych_serving.pictures import ORIENTATION, inspect, latent_mask, pixels

SCALE = 8


def picture(mode="RGB", size=(75, 50)):
    image = Image.effect_noise(size, 60).convert("RGB")
    ImageDraw.Draw(image).ellipse((5, 5, 40, 40), fill=(200, 60, 20))
    return image.convert(mode)


def file(image, form="PNG", **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


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


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_picture_is_turned_as_its_camera_says(turned):
    exif = Image.Exif()
    exif[ORIENTATION] = turned
    data = file(picture(), "JPEG", exif=exif)
    seen = inspect("init_image", data)
    assert (seen.height, seen.width) == ((75, 50) if turned > 4 else (50, 75))
    assert pixels("init_image", data, seen.height, seen.width).shape == (1, 3, seen.height, seen.width)


@pytest.mark.parametrize("turned", [None, 6])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_file_is_a_picture_or_a_named_error(form, turned):
    choose = random.Random(form)
    exif = Image.Exif()
    if turned:
        exif[ORIENTATION] = turned
    whole = file(picture(), form, exif=exif)
    refused = 0
    for _ in range(300):
        data = bytearray(whole[: choose.randint(1, len(whole))])
        for _ in range(choose.randint(0, 8)):
            data[choose.randrange(len(data))] = choose.randrange(256)
        try:
            inspect("init_image", bytes(data))
            pixels("init_image", bytes(data), 64, 64)
        except InvalidRequest as error:
            assert error.field == "init_image"
            refused += 1
    assert refused > 100


def test_a_header_is_checked_without_decoding():
    whole = file(picture())
    assert inspect("init_image", whole[: len(whole) // 2]).width == 75


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused_by_name(form):
    with pytest.raises(InvalidRequest, match=r"init_image: no readable picture .* legal: PNG, JPEG, WEBP"):
        inspect("init_image", file(picture(), form))
