"""The files: three formats, the same picture in each, and what made it inside."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .. import plain

REQUEST = {"prompt": "naïve café — 東京 🍎", "negative_prompt": "grey", "seed": 4, "num_inference_steps": 4}
PARAMETERS = """naïve café — 東京 🍎
Negative prompt: grey
Steps: 4, Sampler: Euler, Schedule type: Default, CFG scale: 4, Seed: 4, Size: 128x128, Model hash: """


def pixels(answer):
    return np.asarray(Image.open(io.BytesIO(answer["image"])).convert("RGB")).astype(int)


def inside(answer):
    """The `parameters` text and our receipt, as a reader of the file finds them."""
    image = Image.open(io.BytesIO(answer["image"]))
    if image.format == "PNG":
        return image.text["parameters"], json.loads(image.text["triptych"])
    exif = image.getexif()
    comment = exif.get_ifd(0x8769)[0x9286]
    return comment.removeprefix(b"UNICODE\0").decode("utf-16-be"), json.loads(exif[0x010E])


@pytest.mark.parametrize(("output_format", "most"), [("png", 0), ("jpeg", 40), ("webp", 60)])
def test_each_format_holds_the_picture_and_its_receipt(url, output_format, most):
    reference = plain.grpc(url, **REQUEST)
    answer = plain.grpc(url, **REQUEST, output_format=output_format)
    assert Image.open(io.BytesIO(answer["image"])).format == output_format.upper()
    assert np.abs(pixels(answer) - pixels(reference)).max() <= most
    parameters, receipt = inside(answer)
    assert parameters.startswith(PARAMETERS)
    assert answer["receipt"].pop("timings")["total_ms"] > 0
    assert answer["receipt"].pop("cached") is False
    assert receipt == answer["receipt"]
    assert receipt["seed"] == 4
    assert receipt["output_format"] == output_format
    assert set(receipt["stages"]) >= {"unet", "vae_decoder", "text_encoder", "text_encoder_2"}


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_documents_lines_for_http_give_a_picture(demo, tmp_path):
    page = Path(__file__).parents[2].joinpath("docs/protocol.md").read_text("utf-8")
    (lines,) = re.findall(r"```sh\n(curl .*?)```", page, re.DOTALL)
    lines = lines.replace("http://localhost:8000", demo.http)
    subprocess.run(["bash", "-euc", lines], cwd=tmp_path, check=True, env={"PATH": os.environ["PATH"], "no_proxy": "*"})
    assert Image.open(tmp_path / "image.png").size == (128, 128)
    Image.open(tmp_path / "image.png").load()


def test_the_receipt_says_what_was_cut_from_a_long_prompt(url):
    words = [f"word{k}" for k in range(40)]
    answer = plain.grpc(url, prompt=" ".join(words), num_inference_steps=1)
    cut = answer["receipt"]["cut"]["prompt"]
    assert 0 < len(cut.split()) < 40
    assert " ".join(words).endswith(cut)


def test_the_same_request_gives_the_same_bytes_and_another_seed_others(url):
    first, again, other = (plain.grpc(url, **{**REQUEST, "seed": seed})["image"] for seed in (5, 5, 6))
    assert first == again != other
