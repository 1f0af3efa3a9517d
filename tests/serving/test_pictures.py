"""Pictures that come with requests: turned as their cameras say, and damaged ones that harm nobody."""

from __future__ import annotations

import random

import pytest
from PIL import Image

from triptych_contract.errors import InvalidRequest
from triptych_serving.pictures import ORIENTATION, inspect, pixels

from .drawn import file, picture


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
