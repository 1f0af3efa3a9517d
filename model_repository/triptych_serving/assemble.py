"""A deployable Triton repository from what people wrote (`model_repository/`) and what an export built."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .manifest import Manifest

HERE = Path(__file__).parent
STAGE_TEMPLATE = "onnx_stage"
MODELS = {"sdxl": ("sdxl", "tokenizer", "denoise", "image_encoder")}
# Stages that Triton runs, with the largest batch its dynamic batcher makes; the loop runs the UNet itself.
TRITON_STAGES = {"text_encoder": 16, "text_encoder_2": 16, "vae_decoder": 4}
TRITON_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8"}


def templates() -> Path:
    """Where the models that people wrote lie: beside this package in a checkout, inside it when installed."""
    return HERE / "models" if (HERE / "models").is_dir() else HERE.parent


def assemble(build: Path, repository: Path) -> None:
    """Write the Triton repository of `build` (an export) to the new folder `repository`.

    Its models find the build by a path relative to themselves, so that both may move together.

    Raises:
        ManifestError: `build` holds no readable manifest.
        FileExistsError: `repository` exists.
    """
    manifest = Manifest.load(build)
    repository.mkdir(parents=True)
    for model in MODELS[manifest.family]:
        _copy_model(model, repository / model)
        if model != manifest.family:
            _append_parameters(repository / model, {"build": _relative(build, repository / model)})
    for stage, max_batch_size in TRITON_STAGES.items():
        _copy_model(STAGE_TEMPLATE, repository / stage)
        config = stage_config(stage, manifest.stages[stage], max_batch_size)
        (repository / stage / "config.pbtxt").write_text(config)
        _append_parameters(repository / stage, {"build": _relative(build, repository / stage), "stage": stage})


def stage_config(name: str, stage: Mapping[str, Any], max_batch_size: int) -> str:
    """`config.pbtxt` of one stage, from the tensor specs in the manifest."""
    lines = [f'name: "{name}"', 'backend: "python"', f"max_batch_size: {max_batch_size}", ""]
    lines += _tensors("input", stage["inputs"]) + _tensors("output", stage["outputs"])
    # Requests share a batch only where the export found that this changes no byte of theirs.
    lines += ["dynamic_batching { }"] if stage["batch_invariant"] else []
    return "\n".join([*lines, "instance_group [ { kind: KIND_CPU count: 1 } ]", ""])


def _tensors(kind: str, specs: Mapping[str, Any]) -> list[str]:
    rows = [
        f'  {{ name: "{name}" data_type: {TRITON_TYPES[spec["dtype"]]} dims: [ {_dims(spec["shape"])} ] }}'
        for name, spec in specs.items()
    ]
    return [f"{kind} [", ",\n".join(rows), "]"]


def _dims(shape: list[int | str]) -> str:
    """All but the batch; a named dimension varies."""
    return ", ".join(str(dim) if isinstance(dim, int) else "-1" for dim in shape[1:])


def _copy_model(model: str, destination: Path) -> None:
    shutil.copytree(templates() / model, destination, ignore=shutil.ignore_patterns("__pycache__", ".gitkeep"))
    (destination / "1").mkdir(exist_ok=True)


def _append_parameters(model: Path, parameters: Mapping[str, str]) -> None:
    with (model / "config.pbtxt").open("a") as config:
        for key, value in parameters.items():
            config.write(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n')


def _relative(build: Path, model: Path) -> str:
    return os.path.relpath(build.resolve(), model.resolve())
