"""What the serving processes load: never torch, never diffusers. Read from the processes themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

# GPU libraries too: they are loaded where a build needs them.
HEAVY = ("torch", "diffusers", "transformers", "onnx", "scipy", "cuda", "tensorrt", "tensorrt_rtx_bindings")


@pytest.mark.parametrize(
    "modules",
    [
        "triptych, triptych.cli.app, triptych.async_client, triptych_server",
        "triptych_serving.engine, triptych_serving.assemble, triptych_serving.ort, triptych_serving.tokenizers",
        "triptych_serving.runtimes, triptych_serving.tensorrt.cuda, triptych_serving.tensorrt.machine",
        "triptych_serving.images, triptych_serving.receipt, triptych_serving.manifest",
    ],
)
def test_importing_loads_no_torch(modules):
    code = f"import {modules}, sys; assert not set({HEAVY}) & set(sys.modules), sorted(set({HEAVY}) & set(sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("modules", "spared"),
    [
        ("triptych_server.commands.serve, triptych_serving.assemble", ("asyncio", "grpc", "numpy", "onnxruntime")),
        (
            "triptych_serving.runtimes, triptych_serving.ort",
            ("PIL", "tokenizers", "triptych_serving.tensorrt.denoiser"),
        ),
    ],
)
def test_a_start_imports_no_more_than_it_needs(modules, spared):
    """Eleven processes start at once: what each imports is most of a start."""
    code = (
        f"import {modules}, sys; assert not set({spared}) & set(sys.modules), sorted(set({spared}) & set(sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("demo")
def test_no_serving_process_has_torch_in_its_memory():
    stubs = [process for process in psutil.Process().children(recursive=True) if _serves(process)]
    models = {Path(process.cmdline()[1]).parent.parent.name for process in stubs}
    assert {"denoise", "tokenizer", "text_encoder", "text_encoder_2", "vae_decoder", "image_encoder"} <= models
    for process in stubs:
        mapped = {Path(region.path).name for region in process.memory_maps()}
        assert not [name for name in mapped if "libtorch" in name]


def _serves(process):
    try:
        return "triton_python_backend_stub" in process.cmdline()[0]
    except (psutil.Error, IndexError):
        return False
