"""Engines for every stage of an export: its graph in the stage's precision, built for each GPU that is asked for."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from triptych_contract.cards import ModelCard
from triptych_serving import step
from triptych_serving.engines import Profile
from triptych_serving.manifest import sha256

from .. import precision
from ..calibration import PROMPTS
from ..errors import ExportError
from ..options import ExportOptions
from ..parts import StageRecipe
from ..stages import StageSpec
from ..step import append
from ..weights import combined
from . import builder, library
from .profiles import make_profiles
from .store import PLAN, EngineKey, EngineStore, StoredEngine, default_store

# TensorRT-RTX 1.7 compiles a text encoder's attention in half precision for such heads only, or smaller ones.
HEAD_MULTIPLE = 8
CODE = ("precision.py", "fp8.py", "calibration.py", "step.py", "tensorrt/builder.py")
# The largest magnitudes of a stage's inner numbers; long to find, and asked for only where they are needed.
Calibrate = Callable[[], Mapping[str, float]]
Report = Callable[[str, float], None]


@dataclass(frozen=True)
class EngineTarget:
    """What engines are built for. `capabilities` are like "sm89"."""

    name: str
    capabilities: Sequence[str]
    precisions: Mapping[str, str]  # of stages, where the caller chooses
    calibration_prompts: Sequence[str] = PROMPTS  # for fp8

    @property
    def version(self) -> str:
        """TensorRT's."""
        return str(library.load(self.name).__version__)


@dataclass(frozen=True)
class StageEngines:
    """What is to be built for one stage: by file, relative to the export's folder, the key of its engine."""

    graph: Path
    spec: StageSpec
    precision: str
    profiles: tuple[Profile, ...]
    keys: Mapping[str, EngineKey]
    steps: (
        Mapping[str, Mapping[str, Any]] | None
    )  # the inputs of a denoiser, whose engine takes the sampler's step as well

    def finish(self, model: ir.Model) -> None:
        """Append to the graph what is not the model's own."""
        if self.steps:
            append(model, self.steps)


class Engines:
    """Builds the engines of one export into its folder, by way of a store that others may share."""

    def __init__(self, store: EngineStore, target: EngineTarget, output: Path) -> None:
        self.store, self.target, self.output = store, target, output

    def check(self, stages: Mapping[str, StageRecipe]) -> None:
        """What is known not to build is refused before anything is made.

        Raises:
            ExportError: a text encoder's heads are of a size that TensorRT-RTX cannot compile; names part and sizes.
        """
        for name, stage in stages.items():
            part, chosen = stage.spec.component, precision.of_stage(name, self.target.precisions, {})
            if self.target.name != "tensorrt-rtx" or not part.startswith("text_encoder") or chosen == "fp32":
                continue
            config = stage.weights.config(part)
            width, heads = config["hidden_size"], config["num_attention_heads"]
            size = width // heads
            if size > HEAD_MULTIPLE and size % HEAD_MULTIPLE:
                raise ExportError(
                    f"{part}/config.json: heads of {size} (hidden_size {width}, num_attention_heads {heads}); supported by "
                    f"TensorRT-RTX in {chosen}: multiples of {HEAD_MULTIPLE}. Give --precision {name}=fp32, or another --target"
                )

    def wanted(self, name: str, facts: Mapping[str, Any], card: ModelCard) -> StageEngines:
        """What the stage `name` needs, from its exported `facts`."""
        spec, chosen = StageSpec.of(name, facts), precision.of_stage(name, self.target.precisions, facts)
        steps = facts["inputs"] if step.taken(facts["inputs"]) else None
        made = make_profiles(card, name, step.inputs(steps) if steps else facts["inputs"])
        key = EngineKey(
            stage=name,
            onnx=facts["sha256"],
            precision=json.dumps([chosen, *self.target.calibration_prompts]) if chosen == precision.EIGHTH else chosen,
            profiles=json.dumps([asdict(profile) for profile in made]),
            target=self.target.name,
            version=self.target.version,
            capability="",
            code=combined(sha256(Path(__file__).parents[1] / file) for file in CODE),
        )
        keys = {f"{name}/{one}.plan": replace(key, capability=one) for one in self.target.capabilities}
        return StageEngines(self.output / facts["path"], spec, chosen, made, keys, steps)

    def make(
        self, wanted: StageEngines, report: Report, calibrate: Calibrate | None = None
    ) -> tuple[list[str], dict[str, Any]]:
        """Build a stage's engines, or take them from the store; the files, and what the manifest says of them.

        `calibrate` is for fp8.

        Raises:
            ExportError: TensorRT refuses the stage; names it.
        """
        engines = {}
        for path, key in wanted.keys.items():
            engine = self.store.get(key, partial(self._build, wanted, key, report, calibrate))
            _place(self.output / path, engine)
            measured = {
                name: engine.facts[name] for name in ("seconds", "peak_bytes", "weights_bytes", "activation_bytes")
            }
            engines[key.capability] = {"path": path, "version": key.version, "onnx": key.onnx, **measured}
        facts = {"precision": wanted.precision, "profiles": [asdict(profile) for profile in wanted.profiles]}
        return list(wanted.keys), {**facts, "engines": engines}

    def _build(
        self, wanted: StageEngines, key: EngineKey, report: Report, calibrate: Calibrate | None, folder: Path
    ) -> dict[str, Any]:
        cache = self.store.root / f"timing-{key.target}-{key.version}-{key.capability}.cache"
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            graph = Path(scratch) / "model.onnx"
            largest = calibrate() if calibrate and wanted.precision == precision.EIGHTH else None
            precision.lower(wanted.graph, graph, wanted.precision, wanted.spec, largest, finish=wanted.finish)
            spec = builder.EngineSpec(
                key.stage, key.target, key.capability, graph, folder / PLAN, wanted.profiles, cache
            )
            return asdict(builder.build(spec, report))


def _place(target: Path, engine: StoredEngine) -> None:
    """Give an engine its name in the export's folder: a link to the store's file, or a copy on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    try:
        os.link(engine.path, unfinished)
    except OSError:
        shutil.copyfile(engine.path, unfinished)
    os.replace(unfinished, target)


def engines_of(options: ExportOptions, output: Path) -> Engines:
    """The engines that an export's options ask for.

    Raises:
        ExportError: TensorRT is not installed, there is no GPU to build for, or a choice is unknown.
    """
    library.load(options.target)
    for stage, chosen in options.precisions.items():
        precision.check_precision(stage, chosen)
    capabilities = options.compute_capabilities or library.capabilities_here()
    if not capabilities:
        hint = (
            "build on the machine that serves" if options.target == "tensorrt" else "name one with --compute-capability"
        )
        raise ExportError(f"--target {options.target}: this machine has no NVIDIA GPU to build for; {hint}")
    store = EngineStore(options.engine_store or default_store())
    prompts = tuple(options.calibration_prompts or PROMPTS)
    return Engines(store, EngineTarget(options.target, tuple(capabilities), dict(options.precisions), prompts), output)
