"""Pictures in bodies, and masks that say it the other way round."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from triptych import InvalidRequest
from triptych_api.pictures import data_url, inverted, openai_mask, picture


def file(image, format="PNG"):
    made = io.BytesIO()
    image.save(made, format)
    return made.getvalue()


def grey(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_only_what_is_wholly_transparent_is_painted():
    alpha = np.array([[0, 1, 128, 255]], np.uint8)
    mask = Image.fromarray(np.dstack([alpha * 0 + 200] * 3 + [alpha]), "RGBA")
    for format in ("PNG", "WEBP"):
        saved = io.BytesIO()
        mask.save(saved, format, lossless=True, exact=True)
        assert grey(openai_mask(saved.getvalue())).tolist() == [[255, 0, 0, 0]]


def test_a_palette_may_be_transparent():
    image = Image.new("P", (2, 1))
    image.putpixel((1, 0), 1)
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.info["transparency"] = 0
    made = io.BytesIO()
    image.save(made, "PNG", transparency=0)
    assert grey(openai_mask(made.getvalue())).tolist() == [[255, 0]]


def test_a_mask_without_transparency_is_none():
    with pytest.raises(InvalidRequest, match="without transparency"):
        openai_mask(file(Image.new("RGB", (4, 4))))


@pytest.mark.parametrize("read", [openai_mask, inverted])
@pytest.mark.parametrize(
    "damage", [b"", b"x", file(Image.new("RGBA", (64, 64)))[:60], file(Image.new("RGBA", (5000, 4000)))]
)
def test_a_mask_that_is_none_or_too_large_is_named(read, damage):
    with pytest.raises(InvalidRequest, match=r"^mask: "):
        read(damage)


def test_inverting_counts_what_is_transparent_as_black():
    pixels = np.array([[[255, 255, 255, 255], [255, 255, 255, 0], [0, 0, 0, 255]]], np.uint8)
    assert grey(inverted(file(Image.fromarray(pixels, "RGBA")))).tolist() == [[0, 255, 255]]


def test_bytes_come_in_all_their_clothes():
    text = base64.b64encode(b"data").decode()
    linked = data_url(b"data", "png")
    given = (b"data", text, linked, {"image_url": linked}, {"image_url": {"url": linked}})
    assert {picture("x", one) for one in given} == {b"data"}


@pytest.mark.parametrize(
    "value", ["/etc/passwd", "http://x/y.png", "data:text/html;base64,aGk=", 3, [], {"file_id": "x"}, {}]
)
def test_nothing_is_opened_or_fetched(value):
    with pytest.raises(InvalidRequest, match=r"^x: "):
        picture("x", value)
