"""Builds for GPUs out of builds for the processor: the same stages and cards, with engines made by whoever asks."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from triptych_export import precision
from triptych_export.cuda import CudaGraphs
from triptych_export.tensorrt.engines import Engines, EngineTarget
from triptych_export.tensorrt.store import PLAN, EngineKey, EngineStore
from triptych_serving import step
from triptych_serving.adapters.mix import INPUTS as SLABS
from triptych_serving.manifest import Manifest

from . import simulated

RTX = "tensorrt-rtx"
# (folder to write PLAN into, key, the stage's facts) → what the store keeps about it.
Make = Callable[[Path, EngineKey, dict[str, Any]], dict[str, Any]]


def planned(
    source: Path, build: Path, capabilities: Sequence[str], make: Make | None = None, *, target: str = RTX
) -> Path:
    """A copy of the build `source` with engines for these GPUs: real ones, or what `make` makes in their place."""
    manifest, document = Manifest.load(source), _copied(source, build)
    real = EngineTarget(
        RTX if make else target, tuple(capabilities), {}
    )  # TensorRT proper need not be here to be invented
    engines = Engines(EngineStore(build.parent / f"{build.name}-store"), real, build)

    def add(name: str) -> None:
        facts = document["stages"][name]
        wanted = engines.wanted(name, facts, manifest.model)
        if make is not None:
            engines._build = lambda wanted, key, _report, _calibrate, folder: make(folder, key, _facts(wanted, facts))
        files, more = engines.make(wanted, lambda _phase, _share: None)
        facts.update(more)
        for file in files:
            document["artifacts"][file] = _content(build / file)

    with ThreadPoolExecutor(1 if make else 2) as pool:  # real ones are built in processes of their own
        list(pool.map(add, document["stages"]))
    document["target"] = target
    (build / "manifest.json").write_text(json.dumps(document))
    return build


def cuda_build(source: Path, build: Path, precisions: dict[str, str]) -> Path:
    """A copy of the build `source` for the target `cuda`."""
    document, graphs = _copied(source, build), CudaGraphs(build, precisions)
    for name, facts in document["stages"].items():
        files, more = graphs.make(name, facts)
        facts.update(more)
        document["artifacts"] |= {file: _content(build / file) for file in files}
    document["target"] = "cuda"
    (build / "manifest.json").write_text(json.dumps(document))
    return build


def _copied(source: Path, build: Path) -> dict[str, Any]:
    """Copy a build without its controls, which no GPU has; the manifest of the copy."""
    shutil.copytree(source, build)
    document: dict[str, Any] = json.loads((build / "manifest.json").read_text())
    more = Manifest.load(source).model.more_stages
    document["stages"] = {name: facts for name, facts in document["stages"].items() if name not in more}
    if more:
        document["model"] |= {"controls": [], "control_bytes": 0}
    return document


def _content(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _facts(wanted, facts):
    """What a stand-in for an engine is made of."""
    given, made, profiles = facts["inputs"], facts["outputs"], wanted.profiles
    return {
        "graph": wanted,
        "inputs": step.inputs(given) if wanted.steps else given,
        "outputs": step.outputs(given, made) if wanted.steps else made,
        "profiles": [{"name": one.name, "shapes": one.shapes} for one in profiles],
    }


def simulated_build(source: Path, build: Path) -> Path:
    """With plans for `simulated.SimulatedDevice`; graphs for adapters are lowered, since their inputs have another type then."""
    manifest, graphs = Manifest.load(source), build.parent / f"{build.name}-graphs"
    graphs.mkdir()

    def make(folder, key, facts):
        onnx, wanted = graphs / f"{key.stage}.onnx", facts["graph"]
        chosen = "fp16" if SLABS[0] in facts["inputs"] else "fp32"
        precision.lower(wanted.graph, onnx, chosen, wanted.spec, finish=wanted.finish)
        (folder / PLAN).write_bytes(simulated.plan(onnx, facts, manifest.model.default_sizes))
        return {"seconds": 1.0, "peak_bytes": 1, "weights_bytes": 1, "activation_bytes": [1] * len(facts["profiles"])}

    return planned(source, build, [simulated.MACHINE.capability], make)
