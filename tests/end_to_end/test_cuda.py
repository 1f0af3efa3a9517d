"""The real server with builds for the target `cuda`, whose graphs the processor runs; no GPU has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych import Client
from triptych_demo import demo_build
from triptych_server import Server
from triptych_serving.assemble import assemble

from ..engines import cuda_build

TRIPTYCH = str(Path(sys.executable).parent / "triptych")
ROOT = Path(__file__).parents[2]
HOOK = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests import simulated\nsimulated.install_cuda()\n"
SINGLE = dict.fromkeys(("text_encoder", "text_encoder_2", "unet", "cascade_text_encoder", "prior", "decoder"), "fp32")


def on_the_processor(builds, repository):
    """What `serve --reproducible` lays out, but ONNX Runtime's CPU provider is in the place of the other."""
    assemble(builds, repository, reproducible=True)
    for model in repository.glob("*/1/model.py"):
        model.write_text(HOOK + model.read_text())


def served(folder, sdxl, cascade):
    """A server with both demo models in these precisions."""
    chosen = {"sdxl": sdxl, "stable_cascade": cascade}
    builds = [cuda_build(demo_build(family), folder / family, precisions) for family, precisions in chosen.items()]
    return Server(builds, http_port=0, grpc_port=0, metrics_port=0, cache_mb=0, prepare=on_the_processor)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    with served(tmp_path_factory.mktemp("single"), SINGLE, SINGLE) as server:
        yield server.addresses.grpc


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """As exported by default, but for Stage C and B: the CPU provider has no bfloat16."""
    with served(tmp_path_factory.mktemp("half"), {}, {"prior": "fp32", "decoder": "fp16"}) as server:
        yield server.addresses.grpc


def drawn(address, model, **request):
    """A picture's levels, and its receipt."""
    with Client(address, model=model) as client:
        image = client.generate(**request)
    return np.asarray(image.image).astype(int), image.receipt


def apart(address, url, model, **request):
    return np.abs(drawn(address, model, **request)[0] - drawn(url, model, **request)[0])


@pytest.mark.parametrize("model", ["sdxl", "stable_cascade"])
def test_graphs_in_float32_draw_what_the_processors_draw(single, url, model):
    assert apart(single, url, model, prompt="a flat icon of a penguin", seed=3).max() <= 1


@pytest.mark.parametrize("model", ["sdxl", "stable_cascade"])
def test_graphs_in_float16_are_a_level_off_here_and_there(half, url, model):
    """Most prompts give one level; some dozens of places of this one are further off."""
    difference = apart(half, url, model, prompt="a flat icon of a penguin", seed=3)
    assert difference.mean() < 0.1
    assert (difference > 1).mean() < 0.01
    assert difference.max() > 0  # it was float16 that drew


def test_pictures_to_start_from_go_through_the_graphs(single, url, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)).save(tmp_path / "x.png")
    request = {"prompt": "a fox", "seed": 4, "num_inference_steps": 4, "init_image": tmp_path / "x.png"}
    assert apart(single, url, "sdxl", **request).max() <= 1


def test_a_receipt_names_target_gpu_and_promise(half):
    _, receipt = drawn(half, "sdxl", prompt="a fox", seed=1, num_inference_steps=1)
    runtime = receipt["runtime"]
    assert (runtime["target"], runtime["gpu"], runtime["reproducible"]) == ("cuda", "Simulated GPU (sm89)", "true")
    assert "onnxruntime" in runtime
    assert "tensorrt" not in runtime


def test_reproducible_images_do_not_depend_on_company(half):
    command = [TRIPTYCH, "verify", "--url", half, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    report = json.loads(done.stdout)
    assert report["equal"], done.stdout + done.stderr
    assert report["denoisers"]["unet"]["batches"][-1] == 16
