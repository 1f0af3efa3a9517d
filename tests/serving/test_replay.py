"""A file is made again from what it says of itself."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .test_cli import triptych


@pytest.fixture
def files(url, tmp_path):
    asked = ["--num-inference-steps", "4", "--sampler", "euler_a", "--url", url, "-o", str(tmp_path)]
    made = [triptych("generate", "naïve 東京 fox", "--output-format", form, *asked) for form in ("png", "jpeg", "webp")]
    return [run.stdout.strip() for run in made]


def test_every_format_is_made_again_byte_for_byte(url, files):
    done = triptych("replay", *files, "--url", url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["equal"] * 3


def test_what_differs_is_named(url, files):
    image = Image.open(files[0])
    receipt = json.loads(image.text["triptych"])
    receipt["runtime"]["onnxruntime"] = "1.0.0"
    info = PngInfo()
    info.add_text("triptych", json.dumps(receipt))
    image.save(files[0], pnginfo=info)
    done = triptych("replay", files[0], "--url", url)
    assert done.returncode == 1
    assert done.stdout.startswith(f"DIFFERS  {files[0]}: runtime.onnxruntime: 1.0.0 → ")


def test_a_file_without_a_receipt_is_refused_by_name(url, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("plain.png", "text.png"):
        done = triptych("replay", str(tmp_path / name), "--url", url)
        assert done.returncode == 2
        assert f"error: {tmp_path / name}: " in done.stderr
