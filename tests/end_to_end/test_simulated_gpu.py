"""The real server with a build for TensorRT-RTX: on a simulated GPU, and refused where there is none."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych import AsyncClient, Client
from triptych_demo import demo_build
from triptych_server import Server
from triptych_serving.assemble import assemble

from ..engines import simulated_build
from ..simulated import MACHINE

TRIPTYCH = str(Path(sys.executable).parent / "triptych")
ROOT = Path(__file__).parents[2]
HOOK = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests import simulated\nsimulated.install(tactics=True)\n"


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return simulated_build(demo_build("sdxl"), tmp_path_factory.mktemp("gpu") / "build")


def simulated_gpu(builds, repository):
    """What `serve --reproducible` lays out, but each model's process has a simulated GPU whose bytes depend on the batch."""
    assemble(builds, repository, reproducible=True)
    for model in repository.glob("*/1/model.py"):
        model.write_text(HOOK + model.read_text())


@pytest.fixture(scope="module")
def gpu(build):
    with Server(build, http_port=0, grpc_port=0, metrics_port=0, cache_mb=0, prepare=simulated_gpu) as server:
        yield server.addresses.grpc


def drawn(address, **request):
    """A picture's levels."""
    with Client(address) as client:
        return np.asarray(client.generate(**request).image).astype(int)


def test_it_draws_what_the_processor_draws(gpu, url):
    request = {"prompt": "a flat icon of a penguin", "seed": 3, "num_inference_steps": 6}
    assert np.abs(drawn(gpu, **request) - drawn(url, **request)).max() <= 2


def test_pictures_to_start_from_go_through_the_gpu(gpu, url, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)).save(tmp_path / "x.png")
    request = {
        "prompt": "a fox",
        "seed": 4,
        "num_inference_steps": 4,
        "init_image": tmp_path / "x.png",
        "strength": 0.5,
    }
    assert np.abs(drawn(gpu, **request) - drawn(url, **request)).max() <= 2


async def test_a_receipt_names_the_gpu_and_the_promise(gpu):
    async with AsyncClient(gpu) as client:
        image = await client.generate("a fox", seed=1, num_inference_steps=1)
    runtime = image.receipt["runtime"]
    assert runtime["target"] == "tensorrt-rtx"
    assert (runtime["gpu"], runtime["tensorrt"]) == ("Simulated GPU (sm89)", MACHINE.version)
    assert runtime["reproducible"] == "true"


def test_reproducible_images_do_not_depend_on_company(gpu):
    command = [TRIPTYCH, "verify", "--url", gpu, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    report = json.loads(done.stdout)
    assert report["equal"], done.stdout + done.stderr
    assert report["denoisers"]["unet"]["batches"][-1] == 16


def processor_seconds():
    """Of child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("target", "missing"),
    [
        ("tensorrt-rtx", r"no NVIDIA \w+"),
        ("tensorrt", r"no NVIDIA \w+|tensorrt: cannot be imported"),
        ("cuda", r"no NVIDIA \w+|onnxruntime [\d.]+: has no CUDAExecutionProvider"),
    ],
)
def test_a_build_for_a_gpu_is_refused_where_there_is_none(build, tmp_path, target, missing):
    document = json.loads((build / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**document, "target": target}))
    command = [TRIPTYCH, "serve", str(tmp_path), "--grpc-port=0", "--http-port=0", "--metrics-port=0"]
    begun = processor_seconds()
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert processor_seconds() - begun < 5  # it waits for nothing
    assert done.returncode == 1
    said = rf"error: {tmp_path}: exported for {target}, which cannot run here: ({missing}).*; .*install.*; or export for the"
    assert re.search(said + r" processor: triptych export … --target cpu -o DIR", done.stderr), done.stderr
