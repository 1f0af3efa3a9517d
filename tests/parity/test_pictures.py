"""Pictures and masks are seen, and painted parts laid over them, as diffusers does it."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageDraw

from triptych_serving.canvas import Canvas
from triptych_serving.pictures import inspect

from ..serving.drawn import file, picture

SCALE = 8
PICTURES = VaeImageProcessor(vae_scale_factor=SCALE)
MASKS = VaeImageProcessor(vae_scale_factor=SCALE, do_normalize=False, do_binarize=True, do_convert_grayscale=True)


def canvas(size, image, mask=None, **settings):
    """The canvas of a request that paints at this size."""
    files = {"init_image": file(image), "mask": b"" if mask is None else file(mask)}
    seen = {name: inspect(name, data) if data else None for name, data in files.items()}
    asked = {"extend": None, "mask_blur": 0, "padding_mask_crop": None, **settings}
    return Canvas.of(files.get, SimpleNamespace(height=size[0], width=size[1], **seen, **asked))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
@pytest.mark.parametrize("size", [(64, 64), (32, 96), (75, 50)])
def test_a_picture_is_seen_as_diffusers_sees_it(mode, size):
    image, (height, width) = picture(mode), (size[1] // 8 * 8, size[0] // 8 * 8)
    theirs = PICTURES.preprocess(image.convert("RGB"), height, width)
    ours, nothing = canvas((height, width), image).seen(height, width)
    np.testing.assert_array_equal(ours, theirs.numpy())
    assert nothing is None


def masks(choose, size):
    mask = Image.new("L", size)
    (left, right), (top, bottom) = (sorted(choose.sample(range(side), 2)) for side in size)
    ImageDraw.Draw(mask).rectangle((left, top, right, bottom), fill=choose.choice([255, 200, 90]))
    return mask


@pytest.mark.parametrize("blur", [0, 3, 40])
def test_a_mask_is_seen_as_diffusers_sees_it(blur):
    image = picture("L")
    image.paste(0, (0, 0, 25, 50))
    image.paste(255, (50, 0, 75, 50))
    theirs = MASKS.preprocess(MASKS.blur(image, blur), 64, 96)
    _, ours = canvas((64, 96), picture(), image, mask_blur=blur).seen(64, 96)
    np.testing.assert_array_equal(ours, theirs.numpy())
    assert 0 < ours.mean() < 1


def test_the_surroundings_of_a_mask_are_cut_out_and_laid_over_as_diffusers_does_it():
    choose = random.Random(1)
    for _ in range(200):
        size = choose.randint(20, 150), choose.randint(20, 150)
        image, mask, blur, padding = (
            picture(size=size),
            masks(choose, size),
            choose.choice([0, 3, 9]),
            choose.choice([0, 4, 32]),
        )
        height, width = choose.choice([64, 96, 128]), choose.choice([64, 96, 128])
        ours = canvas((height, width), image, mask, mask_blur=blur, padding_mask_crop=padding)
        blurred = MASKS.blur(mask, blur)
        region = MASKS.get_crop_region(blurred, width, height, pad=padding)
        assert ours.region == region
        for processor, one, seen in zip((PICTURES, MASKS), (image, blurred), ours.seen(height, width), strict=True):
            theirs = processor.preprocess(one, height=height, width=width, crops_coords=region, resize_mode="fill")
            np.testing.assert_array_equal(seen, theirs.numpy())
        painted = Image.effect_noise((width, height), 90).convert("RGB")
        theirs = PICTURES.apply_overlay(blurred, image, painted, region)
        np.testing.assert_array_equal(ours.finished(np.asarray(painted)), np.asarray(theirs))


def test_a_picture_is_extended_by_its_outermost_pixels_under_white():
    image, mask = picture(), Image.new("L", (75, 50))
    mask.paste(255, (0, 0, 10, 10))
    for given in (None, mask):
        made = canvas((64, 96), image, given, extend=(3, 4, 5, 6))
        assert made.picture.size == made.mask.size == (83, 60)
        assert made.picture.crop((3, 4, 78, 54)).tobytes() == image.tobytes()
        assert {made.picture.getpixel((x, y)) for x in range(4) for y in range(5)} == {image.getpixel((0, 0))}
        inside = np.zeros((50, 75), np.uint8) if given is None else np.asarray(mask)
        np.testing.assert_array_equal(np.asarray(made.mask), np.pad(inside, ((4, 6), (3, 5)), constant_values=255))


def test_a_sliver_of_a_picture_is_painted_at_any_shape():
    mask = Image.new("L", (900, 2), 255)
    made = canvas((64, 64), picture(size=(900, 2)), mask, padding_mask_crop=0)
    assert made.seen(64, 64)[0].shape == (1, 3, 64, 64)
    assert made.finished(np.zeros((64, 64, 3), np.uint8)).shape == (2, 900, 3)
