"""Put together a Triton repository from what people wrote (`model_repository/`), the contract and what exports built."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from triptych_contract.families import FAMILIES
from triptych_contract.family import Family

from .adapters import WORN
from .manifest import Manifest, ManifestError
from .proofs import CODE_BYTES, MADE_BY, PROOF, READ_BY

HERE = Path(__file__).parent
STAGE_TEMPLATE = "stage"
SHARED = ("denoise", "image_encoder")  # models of all families
# Targets whose stages Triton's own TensorRT backend runs.
PLAN_TARGETS = ("tensorrt",)
# The largest batches that Triton's dynamic batcher makes of the stages that it runs; the models above run the others themselves.
ENCODERS = {stage: 16 for family in FAMILIES.values() for stage in family.encoders}
TRITON_STAGES = {**ENCODERS, **{family.decoder: 1 for family in FAMILIES.values()}}
# A contract's or a manifest's type → Triton's name for it in configurations.
TRITON_TYPES = {
    "BYTES": "TYPE_STRING",
    **{name: f"TYPE_{name}" for name in ("BOOL", "INT32", "INT64", "FP32")},
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
}
Config = Any  # Triton's ModelConfig


@cache
def _messages() -> ModuleType:
    """Load tritonclient's `model_config_pb2` alone: the package around it imports gRPC, which takes ten times as long."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None  # noqa: S101 - a dependency
    path = Path(next(iter(package.submodule_search_locations or ())), "grpc", "model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None  # noqa: S101 - a file was named
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def templates() -> Path:
    """Give the folder of the models that people wrote: beside this package in a checkout, inside it when installed."""
    return HERE / "models" if (HERE / "models").is_dir() else HERE.parent


def read_config(path: Path) -> Config:
    """Read a `config.pbtxt`."""
    from google.protobuf import text_format

    return text_format.Parse(path.read_text("utf-8"), _messages().ModelConfig())


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
    promise = {"reproducible": "true"} if reproducible else {}
    shared = {model: template(model) for model in SHARED}
    for manifest in manifests.values():
        _write_family(manifest, shared, repository, promise, reproducible=reproducible)
    for model, config in shared.items():
        _write(repository / model, config, manifests.values(), promise, code=model)


def _write_family(
    manifest: Manifest,
    shared: Mapping[str, Config],
    repository: Path,
    promise: Mapping[str, str],
    *,
    reproducible: bool,
) -> None:
    """Write a family's ensemble and its own models; what the `shared` ones are to know of them goes into their configurations."""
    family, adapted = FAMILIES[manifest.family], _adapted(manifest)
    own = {model: _reader(template(model), model, family) for model in family.models}
    stages = {
        stage: stage_config(
            stage, manifest.stages[stage], manifest.target, reproducible=reproducible, adapted=stage in adapted
        )
        for stage in TRITON_STAGES.keys() & manifest.stages.keys()
    }
    road = ensemble(family, {*SHARED, *family.models, *manifest.stages}, adapted)
    _pass_proofs_on(road, {**own, **stages}, shared, manifest)
    for model, config in own.items():
        _write(repository / model, config, [manifest], promise, code=family.models[model])
    for stage, config in stages.items():
        _write_stage(stage, config, manifest, repository / stage, promise)
    _write(repository / family.name, road)


def by_family(builds: Sequence[Path]) -> dict[str, Manifest]:
    """Give the manifests of builds that are to be served together.

    Raises:
        ManifestError: one is unreadable, or two are of one family.
    """
    manifests: dict[str, Manifest] = {}
    for manifest in map(Manifest.load, builds):
        other = manifests.setdefault(manifest.family, manifest)
        if other is not manifest:
            raise ManifestError(f"{manifest.build}: {manifest.family} is served from {other.build} already; legal: one")
    return manifests


def template(model: str) -> Config:
    """Read the configuration that people wrote of a model."""
    return read_config(templates() / model / "config.pbtxt")


def _adapted(manifest: Manifest) -> set[str]:
    """The stages that wear adapters."""
    return {stage for stage, graph in FAMILIES[manifest.family].adapted.items() if graph in manifest.stages}


def ensemble(family: Family, models: Collection[str], adapted: Collection[str] = ()) -> Config:
    """Complete a family's ensemble: the contract's inputs, and no step whose model is not among `models`.

    Without `adapted` stages nobody is told of adapters.
    """
    config = template(family.name)
    _add_inputs(config, family)
    steps = [step for step in config.ensemble_scheduling.step if step.model_name in models]
    for step in steps if not adapted else ():
        step.input_map.pop(WORN, None)
        step.output_map.pop(WORN, None)
    for name in family.parameters:
        steps[0].input_map[name] = name  # the first step reads all of them
    made = {*family.parameters, *(tensor for step in steps for tensor in step.output_map.values())}
    for step in steps:
        for name in [name for name, tensor in step.input_map.items() if tensor not in made]:
            del step.input_map[name]
    del config.ensemble_scheduling.step[:]
    config.ensemble_scheduling.step.extend(steps)
    return config


def _pass_proofs_on(road: Config, made: Mapping[str, Config], shared: Mapping[str, Config], manifest: Manifest) -> None:
    """Lead each model's proof of what it made to the shared models that read that, and tell them and the first model of it.

    The first model is told which of its tensors each stage reads, in the order of the stage's inputs.
    """
    steps = {step.model_name: step for step in road.ensemble_scheduling.step}
    proving = {name for name, config in made.items() if any(output.name == PROOF for output in config.output)}
    makers = {tensor: name for name in proving & steps.keys() for tensor in steps[name].output_map.values()}
    for name in proving & steps.keys():
        steps[name].output_map[PROOF] = f"{name}_{PROOF}"
    for name, config in shared.items():
        made_by = {given: makers[tensor] for given, tensor in steps[name].input_map.items() if tensor in makers}
        for proof in sorted({f"{maker}_{PROOF}" for maker in made_by.values()}):
            steps[name].input_map[proof] = proof
            config.input.add(name=proof, data_type="TYPE_UINT8", dims=[-1, -1, CODE_BYTES], optional=True)
        config.parameters[f"{MADE_BY}{manifest.family}"].string_value = json.dumps(made_by)
    encoders = proving & ENCODERS.keys() & steps.keys()
    read_by = {
        name: [steps[name].input_map[given.name] for given in made[name].input if given.name in steps[name].input_map]
        for name in encoders
    }
    made[next(iter(FAMILIES[manifest.family].models))].parameters[READ_BY].string_value = json.dumps(read_by)


def _reader(config: Config, model: str, family: Family) -> Config:
    """The first of a family's models reads the request's inputs; the contract says which those are."""
    if model == next(iter(family.models)):
        _add_inputs(config, family)
    return config


def _add_inputs(config: Config, family: Family) -> None:
    for name, one in family.parameters.items():
        config.input.add(name=name, data_type=TRITON_TYPES[one.kind.datatype], dims=[one.kind.count], optional=True)


def stage_config(
    name: str, stage: Mapping[str, Any], target: str = "cpu", *, reproducible: bool = False, adapted: bool = False
) -> Config:
    """Make the configuration of one stage from the tensor specs in the manifest; an `adapted` one reads who wears which."""
    plans = target in PLAN_TARGETS
    # A decoder on a processor is given one picture at a time, and memory for no more.
    rows = 1 if target == "cpu" and name not in ENCODERS else TRITON_STAGES[name]
    config = _messages().ModelConfig(name=name, max_batch_size=rows)
    for tensors, specs in ((config.input, stage["inputs"]), (config.output, stage["outputs"])):
        for tensor, spec in specs.items():
            dims = [dim if isinstance(dim, int) else -1 for dim in spec["shape"][1:]]  # all but the batch; names vary
            tensors.add(name=tensor, data_type=TRITON_TYPES[spec["dtype"]], dims=dims)
    if adapted:
        config.input.add(name=WORN, data_type=TRITON_TYPES["BYTES"], dims=[1])
    # On a processor prompts share a batch only where the export found that this changes no byte of theirs.
    if name in ENCODERS and (stage["batch_invariant"] if target == "cpu" else not reproducible):
        config.dynamic_batching.SetInParent()
    config.response_cache.enable = name in ENCODERS  # the same prompt is encoded once
    _run_by_triton(config, stage) if plans else _run_by_us(config)
    return config


def _run_by_us(config: Config) -> None:
    config.output.add(name=PROOF, data_type="TYPE_UINT8", dims=[-1, CODE_BYTES])
    config.backend = "python"
    config.instance_group.add(kind="KIND_CPU", count=1)


def _run_by_triton(config: Config, stage: Mapping[str, Any]) -> None:
    """Say which engine Triton takes on which GPU, and the profiles that it chooses from."""
    config.platform = "tensorrt_plan"
    for capability in stage["engines"]:
        config.cc_model_filenames[_dotted(capability)] = f"{capability}.plan"
    config.instance_group.add(kind="KIND_GPU", count=1, gpus=[0], profile=map(str, range(len(stage["profiles"]))))


def _dotted(capability: str) -> str:
    """ "sm89" as Triton writes it, "8.9"."""
    number = capability.removeprefix("sm")
    return f"{number[:-1]}.{number[-1]}"


def _write_stage(stage: str, config: Config, manifest: Manifest, folder: Path, promise: Mapping[str, str]) -> None:
    if manifest.target in PLAN_TARGETS:
        _write(folder, config)
        _link_plans(manifest, manifest.stages[stage]["engines"], folder / "1")
    else:
        _write(folder, config, [manifest], {"stage": stage, **promise}, code=STAGE_TEMPLATE)


def _link_plans(manifest: Manifest, engines: Mapping[str, Any], version: Path) -> None:
    for capability, engine in engines.items():
        path = os.path.relpath(manifest.build.resolve() / engine["path"], version.resolve())
        (version / f"{capability}.plan").symlink_to(path)


def _write(
    folder: Path,
    config: Config,
    manifests: Collection[Manifest] = (),
    parameters: Mapping[str, str] | None = None,
    code: str = "",
) -> None:
    """Write a model: its configuration, with the paths to its builds by family, and the code of a template."""
    from google.protobuf import text_format

    (folder / "1").mkdir(parents=True)
    if code:
        source = templates() / code / "1"
        shutil.copytree(source, folder / "1", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    # A link to a build stays one: Triton's processes know no letters but ASCII's in paths.
    builds = {manifest.family: manifest.build.parent.resolve() / manifest.build.name for manifest in manifests}
    paths = {f"build.{family}": os.path.relpath(build, folder.resolve()) for family, build in builds.items()}
    for key, value in {**paths, **(parameters or {})}.items():
        config.parameters[key].string_value = value
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config, as_utf8=True), encoding="utf-8")
