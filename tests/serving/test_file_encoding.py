"""The encoder of finished pictures, without a server."""

from __future__ import annotations

import io
import json
import zlib
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, TiffTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from triptych_serving.images import EXIF_IFD, IMAGE_DESCRIPTION, LEFT_OUT, PNG_LEVEL, USER_COMMENT, encode
from triptych_serving.receipt import infotext


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


def directories(file):
    """What the file's EXIF says, read as TIFF: its two directories, each with its tags' types."""
    data = io.BytesIO(Image.open(io.BytesIO(file)).info["exif"].removeprefix(b"Exif\0\0"))
    outer = ImageFileDirectory_v2(data.read(8))
    outer.load(data)
    data.seek(outer[EXIF_IFD])
    inner = ImageFileDirectory_v2(b"MM\0*" + bytes(4), group=EXIF_IFD)
    inner.load(data)
    return outer, inner


@pytest.mark.parametrize("form", ["jpeg", "webp"])
@pytest.mark.parametrize("receipt", [{"seed": 7}, {"seed": 77}])
def test_exif_says_what_made_it_in_the_types_that_others_read(form, receipt, pixels):
    file = encode(pixels, form, receipt, "ein Füchslein 🦊\nSteps: 3")
    outer, inner = directories(file)
    assert outer.tagtype[IMAGE_DESCRIPTION] == TiffTags.ASCII
    assert json.loads(outer[IMAGE_DESCRIPTION]) == receipt
    assert inner.tagtype[USER_COMMENT] == TiffTags.UNDEFINED
    assert inner[USER_COMMENT] == b"UNICODE\0" + "ein Füchslein 🦊\nSteps: 3".encode("utf-16-be")
    exif = Image.open(io.BytesIO(file)).getexif()
    assert exif.get_ifd(EXIF_IFD)[USER_COMMENT] == inner[USER_COMMENT]
    assert json.loads(exif[IMAGE_DESCRIPTION]) == receipt


def said(file):
    exif = Image.open(io.BytesIO(file)).getexif()
    return json.loads(exif[IMAGE_DESCRIPTION]), exif.get_ifd(EXIF_IFD)[USER_COMMENT][8:].decode("utf-16-be")


def made_by(prompt):
    return {
        "prompt": prompt,
        "negative_prompt": prompt,
        "seed": 7,
        "cut": {"prompt": prompt, "negative_prompt": prompt},
    }


def a1111(prompt):
    return f"{prompt}\nNegative prompt: {prompt}\nSteps: 3, Seed: 7"


def test_a_jpeg_with_long_prompts_holds_all_of_them_and_says_what_it_leaves_out(pixels):
    prompt = "a fox, " * 1286  # 9,002 bytes
    receipt, text = said(encode(pixels, "jpeg", made_by(prompt), a1111(prompt)))
    assert text == a1111(prompt)
    assert receipt == {
        "prompt": prompt,
        "negative_prompt": prompt,
        "seed": 7,
        "left_out": f"cut: {LEFT_OUT}",
    }
    assert said(encode(pixels, "webp", made_by(prompt), a1111(prompt))) == (made_by(prompt), a1111(prompt))


@pytest.mark.parametrize("prompt", ["x" * 16_384, "\t" * 16_384, "狐" * 5461, "🦊" * 4096, '"' * 16_384, "x" * 12_000])
def test_a_jpeg_takes_the_longest_legal_prompts(prompt, pixels):
    receipt, text = said(encode(pixels, "jpeg", made_by(prompt), a1111(prompt)))
    assert text.endswith("\nSteps: 3, Seed: 7")
    assert LEFT_OUT in str(receipt)
    assert text.startswith(prompt) or LEFT_OUT in text
    assert "prompt" not in receipt or receipt["prompt"] == prompt


class Fields(NamedTuple):
    """A pipeline, as far as A1111's words go."""

    named: dict[str, Any]

    def a1111_fields(self, _made_by):
        return self.named


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("sdxl-demo", "sdxl-demo"),
        ('a "b" \\ c', 'a "b" \\ c'),
        ("Juggernaut XL, v9: CFG scale: 12", '"Juggernaut XL, v9: CFG scale: 12"'),
        ('Modèle, "模型"', '"Modèle, \\"模型\\""'),
    ],
)
def test_a_models_name_cannot_be_read_as_other_fields(name, written):
    receipt = {"prompt": "a fox", "negative_prompt": None, "runtime": {"triptych": "1"}}
    text = infotext(receipt, Fields({"Steps": 3, "Model": name, "Clip skip": None}))
    assert text == f"a fox\nSteps: 3, Model: {written}, Version: triptych 1"
