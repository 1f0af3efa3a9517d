"""Pictures and masks as other programs write them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from triptych_serving.pictures import ORIENTATION, decoded, inspect, pixels, white

from .drawn import file, picture
from .test_pictures import chunk


def turned_by(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


def behind_the_pixels(data, *chunks):
    end = data.index(b"IEND") - 4
    return data[:end] + b"".join(chunks) + data[end:]


XMP = b"""XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/"
tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16"])
@pytest.mark.parametrize("note", [(b"eXIf", turned_by(6)[6:]), (b"iTXt", XMP)])
def test_a_png_that_says_behind_its_pixels_how_it_is_turned_is_turned(note, mode):
    data = file(picture("L").convert("I;16") if mode == "I;16" else picture(mode))
    turned = behind_the_pixels(data, chunk(b"tEXt", b"a\0b"), chunk(*note), chunk(b"tIME", bytes(7)))
    plain, seen = inspect("init_image", data), inspect("init_image", turned)
    assert (plain.height, plain.width) == (50, 75)
    assert (seen.height, seen.width) == (75, 50)
    upright = pixels(decoded("init_image", data))
    assert (pixels(decoded("init_image", turned)) == np.rot90(upright, -1, axes=(2, 3))).all()


def sixteen_bits(grey):
    """The picture whose upper bytes are those of `grey` (h, w) uint8, as PNG scales 8 bits to 16."""
    return file(Image.fromarray(grey.astype(np.uint16) * 257))


def test_a_grey_png_of_16_bits_is_what_its_twin_of_8_bits_is():
    grey = np.asarray(picture("L"))
    twin, data = file(Image.fromarray(grey)), sixteen_bits(grey)
    assert data[24] == 16
    assert (pixels(decoded("init_image", data)) == pixels(decoded("init_image", twin))).all()
    assert (painted(data) == painted(twin)).all()
    assert 0 < painted(data).mean() < 1


def left_half(white, rest):
    """64 × 64, `white` in the left half and `rest` in the right."""
    image = Image.new(white[0], (64, 64), rest)
    image.paste(white[1], (0, 0, 32, 64))
    return image


def painted(data):
    return white(decoded("mask", data, on_black=True))[0, 0]


HALF = np.concatenate([np.ones((64, 32)), np.zeros((64, 32))], 1)


@pytest.mark.parametrize(
    ("mask", "anew"),
    [
        (left_half(("RGBA", (255, 255, 255, 255)), (0, 0, 0, 255)), HALF),
        (left_half(("RGBA", (255, 255, 255, 255)), (255, 255, 255, 0)), HALF),
        (left_half(("RGBA", (255, 255, 255, 255)), (0, 0, 0, 0)), HALF),
        (left_half(("LA", (255, 200)), (255, 20)), HALF),
        (left_half(("RGBA", (0, 0, 0, 255)), (0, 0, 0, 0)), np.zeros((64, 64))),
        (left_half(("RGB", (255, 255, 255)), (0, 0, 0)), HALF),
    ],
)
def test_what_is_transparent_in_a_mask_counts_as_black(mask, anew):
    assert (painted(file(mask)) == anew).all()


def test_a_palettes_transparent_colour_counts_as_black():
    image = left_half(("RGB", (255, 255, 255)), (255, 255, 0)).quantize(2)
    yellow = image.getpixel((63, 0))
    data = file(image, transparency=yellow)
    assert (painted(data) == HALF).all()
