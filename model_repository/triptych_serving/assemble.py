"""A deployable Triton repository from what people wrote (`model_repository/`) and what an export built."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .manifest import Manifest

HERE = Path(__file__).parent
STAGE_TEMPLATE = "onnx_stage"
MODELS = {"sdxl": ("sdxl", "tokenizer", "vae_encoder", "denoise", "image_encoder")}
# Stages that Triton runs, with the largest batch its dynamic batcher makes; the models above run the others themselves.
TRITON_STAGES = {"text_encoder": 16, "text_encoder_2": 16, "refiner_text_encoder_2": 16, "vae_decoder": 4}
# Stages whose answers Triton's response cache keeps: the same prompt is encoded once.
CACHED_STAGES = ("text_encoder", "text_encoder_2", "refiner_text_encoder_2")
# Parts of an ensemble that need a stage which not every build has.
ONLY_WITH = re.compile(r"^ *# only with (\w+).*?\n(.*?)^ *# end\n", re.DOTALL | re.MULTILINE)
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
    ensemble = repository / manifest.family / "config.pbtxt"
    ensemble.write_text(_with_stages(ensemble.read_text(), manifest.stages))
    for stage in TRITON_STAGES.keys() & manifest.stages.keys():
        _copy_model(STAGE_TEMPLATE, repository / stage)
        (repository / stage / "config.pbtxt").write_text(stage_config(stage, manifest.stages[stage]))
        _append_parameters(repository / stage, {"build": _relative(build, repository / stage), "stage": stage})


def stage_config(name: str, stage: Mapping[str, Any]) -> str:
    """`config.pbtxt` of one stage, from the tensor specs in the manifest."""
    lines = [f'name: "{name}"', 'backend: "python"', f"max_batch_size: {TRITON_STAGES[name]}", ""]
    lines += _tensors("input", stage["inputs"]) + _tensors("output", stage["outputs"])
    # Requests share a batch only where the export found that this changes no byte of theirs.
    lines += ["dynamic_batching { }"] if stage["batch_invariant"] else []
    lines += ["response_cache { enable: true }"] if name in CACHED_STAGES else []
    return "\n".join([*lines, "instance_group [ { kind: KIND_CPU count: 1 } ]", ""])


def _with_stages(ensemble: str, stages: Collection[str]) -> str:
    """An ensemble's config without the parts that need other stages."""
    return ONLY_WITH.sub(lambda part: part[2] if part[1] in stages else "", ensemble)


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
