"""Adapters on the real server with builds for GPUs: a simulated one, and ONNX Runtime's CUDA provider played by the processor."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from triptych import Client
from triptych_server import Server

from .. import loras
from ..engines import cuda_build, simulated_build
from .test_cuda import on_the_processor
from .test_simulated_gpu import simulated_gpu

SEED = 3  # of the tiny build
ASKED = {"prompt": "a red fox", "seed": 1, "num_inference_steps": 4, "height": 64, "width": 64}
WORN = (None, "ink", "ink:-0.5, fog")
TARGETS = {
    "tensorrt-rtx": (simulated_build, simulated_gpu),
    "cuda": (lambda source, build: cuda_build(source, build, {}), on_the_processor),
}


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """Two LoRAs: of all parts, and of the UNet alone."""
    made, layers = tmp_path_factory.mktemp("loras"), loras.layers_of(tiny(SEED)[1])
    for seed, (name, stages) in enumerate({"ink": loras.KOHYA, "fog": ("unet",)}.items()):
        (made / f"{name}.safetensors").write_bytes(loras.pack(loras.tensors(layers, seed, stages=stages)))
    return made


def drawn(build, folder, **more):
    """The levels of a picture for each of WORN, all asked for at once."""
    with (
        Server(build, http_port=0, grpc_port=0, metrics_port=0, cache_mb=0, adapters=folder, **more) as server,
        Client(server.addresses.grpc) as client,
        ThreadPoolExecutor() as pool,
    ):
        images = list(pool.map(lambda lora: client.generate(**ASKED, lora=lora).image, WORN))
    return [np.asarray(image).astype(int) for image in images]


@pytest.fixture(scope="module")
def wanted(tiny, folder):
    return drawn(tiny(SEED)[1], folder)


@pytest.mark.parametrize("target", TARGETS)
def test_adapters_are_worn_as_on_the_processor(tiny, folder, wanted, target, tmp_path):
    make, prepare = TARGETS[target]
    got = drawn(make(tiny(SEED)[1], tmp_path / "build"), folder, prepare=prepare)
    for mine, theirs in zip(got, wanted, strict=True):
        assert np.abs(mine - theirs).mean() < 1
    assert all(np.abs(worn - wanted[0]).mean() > 5 for worn in got[1:])
