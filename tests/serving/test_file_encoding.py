"""The encoder of finished pictures, without a server."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from triptych_serving.images import PNG_LEVEL, encode


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)


def test_a_png_holds_the_pixels_and_what_made_them(pixels):
    image = Image.open(io.BytesIO(encode(pixels, "png", {"seed": 7}, "Seed: 7")))
    assert (np.asarray(image) == pixels).all()
    assert image.text == {"parameters": "Seed: 7", "triptych": '{"seed": 7}'}


def test_a_png_is_packed_quickly(pixels):
    """A 1024² picture takes a third of a second at zlib's default, and one process encodes them all."""
    file = encode(pixels, "png", {}, "")
    begins = file.index(b"IDAT") + len(b"IDAT")
    assert file[begins : begins + 2] == zlib.compress(b"", PNG_LEVEL)[:2] != zlib.compress(b"")[:2]
