"""A deployable Triton repository from what people wrote (`model_repository/`) and what exports built."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from .manifest import Manifest, ManifestError

HERE = Path(__file__).parent
STAGE_TEMPLATE = "stage"
# The models of each family, its ensemble first, and those that all families share.
OWN = {"sdxl": ("sdxl", "tokenizer", "vae_encoder"), "stable_cascade": ("stable_cascade", "cascade_tokenizer")}
SHARED = ("denoise", "image_encoder")
# Models whose code is another's; their tensors are their own.
CODE_OF = {"cascade_tokenizer": "tokenizer"}
# Stages that Triton runs, with the largest batch its dynamic batcher makes; the models above run the others themselves.
ENCODERS = {
    "text_encoder": 16,
    "text_encoder_2": 16,
    "refiner_text_encoder_2": 16,
    "cascade_text_encoder": 16,
    "cascade_decoder_text_encoder": 16,
}
# Targets whose stages Triton's own TensorRT backend runs.
PLAN_TARGETS = ("tensorrt",)
TRITON_STAGES = {**ENCODERS, "vae_decoder": 4, "vqgan": 4}
# Parts of an ensemble that need a stage which not every build has.
ONLY_WITH = re.compile(r"^ *# only with (\w+).*?\n(.*?)^ *# end\n", re.DOTALL | re.MULTILINE)
TRITON_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8"}


def templates() -> Path:
    """Where the models that people wrote lie: beside this package in a checkout, inside it when installed."""
    return HERE / "models" if (HERE / "models").is_dir() else HERE.parent


def assemble(builds: Sequence[Path], repository: Path, *, reproducible: bool = False) -> None:
    """Write the Triton repository of one or more builds (exports of different families) to the new folder `repository`.

    Its models find the builds by paths relative to themselves, so that all may move together. With `reproducible` an image's
    bytes do not depend on what else is drawn on GPUs either, which costs shared batches; on processors they never do.

    Raises:
        ManifestError: a build holds no readable manifest, or two are of one family.
        FileExistsError: `repository` exists.
    """
    manifests = by_family(builds)
    repository.mkdir(parents=True)
    for model in SHARED:
        _copy_model(model, repository, manifests.values(), reproducible)
    for family, manifest in manifests.items():
        ensemble, *models = OWN[family]
        _copy_model(ensemble, repository)
        config = repository / ensemble / "config.pbtxt"
        config.write_text(_with_stages(config.read_text("utf-8"), manifest.stages), "utf-8")
        for model in models:
            _copy_model(model, repository, [manifest], reproducible)
        for stage in TRITON_STAGES.keys() & manifest.stages.keys():
            _write_stage(stage, manifest, repository, reproducible)


def by_family(builds: Sequence[Path]) -> dict[str, Manifest]:
    """The manifests of builds that are to be served together.

    Raises:
        ManifestError: one is unreadable, or two are of one family.
    """
    manifests: dict[str, Manifest] = {}
    for manifest in map(Manifest.load, builds):
        other = manifests.setdefault(manifest.family, manifest)
        if other is not manifest:
            raise ManifestError(f"{manifest.build}: {manifest.family} is served from {other.build} already; legal: one")
    return manifests


def stage_config(name: str, stage: Mapping[str, Any], target: str = "cpu", *, reproducible: bool = False) -> str:
    """`config.pbtxt` of one stage, from the tensor specs in the manifest."""
    plans = target in PLAN_TARGETS
    lines = [f'name: "{name}"', 'platform: "tensorrt_plan"' if plans else 'backend: "python"']
    lines += [f"max_batch_size: {TRITON_STAGES[name]}", ""]
    lines += _tensors("input", stage["inputs"]) + _tensors("output", stage["outputs"])
    # On a processor one picture keeps a decoder's threads busy: in batches all would wait for the last. Others share one only
    # where the export found that this changes no byte of theirs.
    shared = name in ENCODERS and stage["batch_invariant"] if target == "cpu" else not reproducible
    lines += ["dynamic_batching { }"] if shared else []
    # The same prompt is encoded once.
    lines += ["response_cache { enable: true }"] if name in ENCODERS else []
    return "\n".join([*lines, *(_plans(stage) if plans else ["instance_group [ { kind: KIND_CPU count: 1 } ]"]), ""])


def _plans(stage: Mapping[str, Any]) -> list[str]:
    """Which engine Triton takes on which GPU, and the profiles that it chooses from."""
    files = [
        f'cc_model_filenames {{ key: "{_dotted(capability)}" value: "{capability}.plan" }}'
        for capability in stage["engines"]
    ]
    numbers = ", ".join(f'"{index}"' for index in range(len(stage["profiles"])))
    return [*files, f"instance_group [ {{ kind: KIND_GPU count: 1 profile: [ {numbers} ] }} ]"]


def _dotted(capability: str) -> str:
    """ "sm89" as Triton writes it, "8.9"."""
    number = capability.removeprefix("sm")
    return f"{number[:-1]}.{number[-1]}"


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


def _write_stage(stage: str, manifest: Manifest, repository: Path, reproducible: bool) -> None:
    folder, facts, plans = repository / stage, manifest.stages[stage], manifest.target in PLAN_TARGETS
    if plans:
        _link_plans(manifest, facts["engines"], folder / "1")
    else:
        shutil.copytree(templates() / STAGE_TEMPLATE, folder, ignore=_UNWANTED)
    (folder / "config.pbtxt").write_text(
        stage_config(stage, facts, manifest.target, reproducible=reproducible), "utf-8"
    )
    if not plans:
        _append_parameters(folder, {"stage": stage, **_paths([manifest], folder), **_promise(reproducible)})


def _link_plans(manifest: Manifest, engines: Mapping[str, Any], version: Path) -> None:
    version.mkdir(parents=True)
    for capability, engine in engines.items():
        path = os.path.relpath(manifest.build / engine["path"], version.resolve())
        (version / f"{capability}.plan").symlink_to(path)


def _copy_model(model: str, repository: Path, manifests: Collection[Manifest] = (), reproducible: bool = False) -> None:
    folder = repository / model
    shutil.copytree(templates() / model, folder, ignore=_UNWANTED)
    if model in CODE_OF:
        shutil.copytree(templates() / CODE_OF[model] / "1", folder / "1", ignore=_UNWANTED)
    (folder / "1").mkdir(exist_ok=True)
    _append_parameters(folder, {**_paths(manifests, folder), **_promise(reproducible)})


_UNWANTED = shutil.ignore_patterns("__pycache__", ".gitkeep")


def _append_parameters(model: Path, parameters: Mapping[str, str]) -> None:
    with (model / "config.pbtxt").open("a") as config:
        for key, value in parameters.items():
            config.write(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n')


def _paths(manifests: Collection[Manifest], model: Path) -> dict[str, str]:
    """From a model to its builds, by family."""
    return {f"build.{manifest.family}": os.path.relpath(manifest.build, model.resolve()) for manifest in manifests}


def _promise(reproducible: bool) -> dict[str, str]:
    return {"reproducible": "true"} if reproducible else {}
