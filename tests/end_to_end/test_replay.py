"""A file is made again from what it says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from triptych_demo import demo_build
from triptych_server import Server

from .. import plain
from .test_cli import triptych

# Options of many pictures, in twelve commands.
MANY = [
    ["-n", "4", "--num-inference-steps", "5"],
    ["-n", "2", "--num-inference-steps", "4", "--sampler", "dpmpp_2m_sde", "--schedule", "karras"],
    ["-n", "2", "--num-inference-steps", "7", "--sampler", "unipc", "--guidance-rescale", "0.5"],
    ["-n", "2", "--num-inference-steps", "4", "--sampler", "lcm", "--guidance-scale", "1"],
    ["-n", "2", "--num-inference-steps", "6", "--guidance-end", "0.5", "--negative-prompt", "grey"],
    ["--num-inference-steps", "4", "--clip-skip", "1", "--size", "96x128", "--original-size", "512x512"],
    ["--num-inference-steps", "3", "--output-format", "jpeg"],
    ["-n", "3", "--num-inference-steps", "6", "--init-image", "START", "--strength", "0.6"],
    ["-n", "2", "--num-inference-steps", "5", "--init-image", "START", "--mask", "START", "--sampler", "euler_a"],
    ["--num-inference-steps", "5", "--sampler", "heun", "--crops-coords-top-left", "8,16"],
    ["--num-inference-steps", "4", "--init-image", "START", "--extend", "0,0,32,0", "--mask-blur", "3"],
    ["--num-inference-steps", "4", "--init-image", "START", "--mask", "START", "--padding-mask-crop", "8"],
]


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
    assert done.stdout.startswith(f"DIFFERS  {files[0]}: other runtime (onnxruntime 1.0.0 → ")


def test_a_file_without_a_receipt_is_refused_by_name(url, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("plain.png", "text.png"):
        done = triptych("replay", str(tmp_path / name), "--url", url)
        assert done.returncode == 2
        assert f"error: {tmp_path / name}: " in done.stderr


def test_files_of_another_run_are_made_again_byte_for_byte(url, tmp_path):
    start = tmp_path / "start.png"
    Image.effect_noise((128, 96), 60).convert("RGB").save(start)
    with Server(demo_build(), http_port=0, grpc_port=0, metrics_port=0) as other:
        for asked in MANY:
            words = [word.replace("START", str(start)) for word in asked]
            to = ["--url", other.addresses.grpc, "-o", str(tmp_path / "made"), "--quiet"]
            done = triptych("generate", "a flat icon of a penguin", *words, *to)
            assert done.returncode == 0, done.stderr
    made = sorted(map(str, (tmp_path / "made").iterdir()))
    assert len(made) == 22
    done = triptych("replay", *made, "--init-image", str(start), "--mask", str(start), "--url", url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["equal"] * 22


def test_a_file_made_from_a_picture_needs_that_picture(url, tmp_path):
    start = tmp_path / "start.png"
    Image.effect_noise((64, 64), 60).convert("RGB").save(start)
    asked = ["--init-image", str(start), "--strength", "0.5", "--num-inference-steps", "2", "--quiet"]
    made = triptych("generate", "a fox", *asked, "--url", url, "-o", str(tmp_path / "made")).stdout.strip()
    done = triptych("replay", made, "--url", url)
    assert done.returncode == 2
    assert "needs the picture it was made from: --init-image FILE" in done.stdout
    assert triptych("replay", made, "--init-image", str(start), "--url", url).returncode == 0


def test_each_of_eight_files_says_the_seed_that_makes_it_alone(url, tmp_path):
    asked = ["-n", "8", "--num-inference-steps", "3", "--url", url, "--quiet"]
    made = triptych("generate", "a 3d rocket", *asked, "-o", str(tmp_path)).stdout.split()
    for path in made:
        seed = json.loads(Image.open(path).text["triptych"])["seed"]
        alone = plain.grpc(url, prompt="a 3d rocket", num_inference_steps=3, seed=seed)
        assert Path(path).read_bytes() == alone["image"]
    assert len(made) == 8
