"""Pictures that come with requests: turned as their cameras say, and damaged ones that harm nobody."""

from __future__ import annotations

import random
import struct
import zlib

import pytest
from PIL import Image

from triptych_contract.errors import InvalidRequest
from triptych_serving.pictures import ORIENTATION, decoded, inspect, pixels

from .drawn import file, picture


@pytest.mark.parametrize("turned", range(1, 9))
def test_a_picture_is_turned_as_its_camera_says(turned):
    exif = Image.Exif()
    exif[ORIENTATION] = turned
    data = file(picture(), "JPEG", exif=exif)
    seen = inspect("init_image", data)
    assert (seen.height, seen.width) == ((75, 50) if turned > 4 else (50, 75))
    assert pixels(decoded("init_image", data)).shape == (1, 3, seen.height, seen.width)


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
            decoded("init_image", bytes(data))
        except InvalidRequest as error:
            assert error.field == "init_image"
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_file_that_is_cut_is_refused_without_decoding(form):
    whole = file(picture(), form)
    for size in (len(whole) // 2, len(whole) - 3):
        with pytest.raises(InvalidRequest, match="init_image: a damaged file"):
            inspect("init_image", whole[:size])


@pytest.mark.parametrize("size", [(8, 8), (640, 480)])
@pytest.mark.parametrize("colour", ["black", "noise"])
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {"optimize": True}),
        ("PNG", {"bits": 1}),
        ("JPEG", {"quality": 1, "optimize": True}),
        ("JPEG", {"quality": 1, "progressive": True}),
        ("JPEG", {"subsampling": 0, "restart_marker_rows": 1}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True, "exif": Image.Exif()}),
    ],
)
def test_files_as_small_and_as_large_as_encoders_make_them_are_taken(form, options, size, colour):
    image = Image.new("L", size) if colour == "black" else Image.effect_noise(size, 60)
    image = image.convert("P" if "bits" in options else "RGB")
    seen = inspect("init_image", file(image, form, **options))
    assert (seen.width, seen.height) == size


def chunk(kind, data=b""):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks, size=(128, 128)):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join((header, *chunks, chunk(b"IEND")))


def jpeg_of_many(segments=0, scans=0):
    whole = file(picture(), "JPEG")
    scan = whole.index(b"\xff\xda")
    return whole[:2] + b"\xff\xfe\0\2" * segments + whole[2:-2] + whole[scan:-2] * scans + whole[-2:]


def webp_of_many(chunks):
    body = file(picture(), "WEBP")[8:] + b"junk\0\0\0\0" * chunks
    return b"RIFF" + struct.pack("<I", len(body)) + body


def claiming(width, height):
    """A JPEG whose header says another size than its data have."""
    whole = bytearray(file(picture(), "JPEG"))
    at = whole.index(b"\xff\xc0") + 5
    whole[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(whole)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        # 33 MB, which Pillow takes 13 seconds to open.
        (lambda: png(chunk(b"tEXt", b"a\0") * 2_200_000), "more than 10000 chunks given; legal: at most 10000 chunks"),
        (lambda: png(chunk(b"IDAT") * 20_000), "more than 10000 chunks"),
        (lambda: png(chunk(b"fdAT", b"1234") * 20_000), "more than 10000 chunks"),
        (lambda: jpeg_of_many(segments=1_000_000), "more than 10000 segments"),
        (lambda: jpeg_of_many(scans=200), "more than 100 scans given; legal: at most 100 scans"),
        (lambda: webp_of_many(1_000_000), "more than 10000 chunks"),
        (lambda: png(chunk(b"IDAT", b"x" * 100), size=(7000, 7000)), "a damaged file (7000×7000 pixels in 100 bytes)"),
        (lambda: claiming(8000, 8000), "a damaged file (8000×8000 pixels in "),
        (lambda: claiming(9000, 9000), "9000×9000 pixels given; legal: at most 64000000"),
    ],
)
def test_pillow_sees_no_file_that_would_take_it_long(made, words, monkeypatch):
    data = made()
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(InvalidRequest) as refused:
        inspect("init_image", data)
    assert words in str(refused.value)


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused_by_name(form):
    with pytest.raises(InvalidRequest, match=r"init_image: no readable picture .* legal: PNG, JPEG, WEBP"):
        inspect("init_image", file(picture(), form))
