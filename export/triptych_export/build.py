"""The export: a folder of weights in, a build folder with its manifest and a deployable Triton repository out."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from triptych_serving.assemble import assemble
from triptych_serving.manifest import FILE_NAME, FORMAT, Manifest, ModelCard, TokenizerCard, sha256

from . import samplers, to_onnx
from .errors import ExportError
from .ledger import Ledger
from .stages import MODULES, StageSpec, specs
from .tokenizers import export_tokenizer
from .weights import COMPONENTS, TOKENIZERS, Weights

REPOSITORY = "model_repository"
TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "triptych")

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Options:
    """What the caller may choose; None means what the folder or diffusers say."""

    name: str = "sdxl"
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    samplers: Sequence[str] | None = None


def export(
    weights_folder: Path, output: Path, options: Options | None = None, report: Report | None = None
) -> Manifest:
    """Export an SDXL folder for ONNX Runtime on a CPU; parts of `output` that are up to date are kept.

    `report` is called with what is being done and the share of it that is over.

    Raises:
        ExportError: the folder is not supported, or a stage differs from PyTorch.
    """
    _silence()
    run = _Export(Weights.open(weights_folder), output, options or Options(), report or (lambda _what, _share: None))
    return run.run()


class _Export:
    def __init__(self, weights: Weights, output: Path, options: Options, report: Report) -> None:
        self.weights, self.output, self.options, self.report = weights, output, options, report
        output.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(output)
        self.source = {component: _combined(map(sha256, weights.files(component))) for component in COMPONENTS}

    def run(self) -> Manifest:
        cards = [self._tokenizer(part) for part in TOKENIZERS]
        if len({card.max_length for card in cards}) > 1:
            raise ExportError(f"tokenizer: lengths {[card.max_length for card in cards]}; SDXL needs two equal ones")
        stage_specs = specs(self.weights, cards[0].max_length)
        pairs = self._pairs()
        work = len(stage_specs) + len(pairs)
        stages = {}
        for done, (name, spec) in enumerate(stage_specs.items()):
            self.report(name, done / work)
            stages[name] = self._stage(name, spec)
        paths: dict[str, dict[str, str]] = {}
        for done, (sampler, schedule) in enumerate(pairs, len(stages)):
            self.report(f"{sampler} × {schedule}", done / work)
            paths.setdefault(sampler, {})[schedule] = self._tables(sampler, schedule)
        self._write_manifest(self._card(cards, paths), stages)
        self._assemble()
        self.ledger.finish()
        self.report("done", 1.0)
        return Manifest.load(self.output)

    def _pairs(self) -> list[tuple[str, str]]:
        config = self.weights.config("scheduler")
        default = samplers.default_sampler(config)
        wanted = set(self.options.samplers or samplers.SAMPLERS)
        if unknown := sorted(wanted - set(samplers.SAMPLERS)):
            raise ExportError(f"sampler: {unknown[0]!r} given; legal: {', '.join(samplers.SAMPLERS)}")
        legal = [pair for pair in samplers.legal_pairs(config) if pair[0] in wanted]
        return legal if default in legal else [default, *legal]

    def _tokenizer(self, part: str) -> TokenizerCard:
        path = f"{part}/tokenizer.json"

        def make() -> tuple[list[str], dict[str, Any]]:
            return [path], asdict(export_tokenizer(self.weights.load_tokenizer(part), self.output / path, path))

        sources = map(sha256, sorted(file for file in (self.weights.folder / part).iterdir() if file.is_file()))
        return TokenizerCard(**self.ledger.part(part, self._fingerprint(list(sources)), make))

    def _stage(self, name: str, spec: StageSpec) -> dict[str, Any]:
        config = self.weights.config(spec.component)
        made_from = self._fingerprint(self.source[spec.component], asdict(spec), config, self.weights.size_multiple)
        return self.ledger.part(name, made_from, lambda: self._make_stage(name, spec))

    def _make_stage(self, name: str, spec: StageSpec) -> tuple[list[str], dict[str, Any]]:
        path = f"{name}/model.onnx"
        verdict = self._convert(name, spec, self.output / path)
        files = [path, *([f"{path}_data"] if (self.output / f"{path}_data").exists() else [])]
        tensors = {kind: {n: asdict(t) for n, t in getattr(spec, kind).items()} for kind in ("inputs", "outputs")}
        digest = _combined(sha256(self.output / file) for file in files)
        return files, {"path": path, "files": files, "sha256": digest, **tensors, **verdict}

    def _convert(self, name: str, spec: StageSpec, target: Path) -> dict[str, Any]:
        """Export one stage beside its place, check it there, and only then move it in."""
        vocabulary = self.weights.config(spec.component).get("vocab_size", 0)
        examples = to_onnx.example_inputs(spec, self.weights.size_multiple, self.weights.vae_scale_factor, vocabulary)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unchecked-") as folder:
            unchecked = Path(folder) / target.name
            with contextlib.redirect_stdout(io.StringIO()):
                module = MODULES[name](self.weights.load(spec.component))
                expected = to_onnx.references(module, spec, examples)
                to_onnx.convert(module, spec, examples, unchecked)
            del module  # a full-size stage and ONNX Runtime's copy of it do not fit side by side
            gc.collect()
            verdict: dict[str, Any] = {"max_difference": to_onnx.check(name, unchecked, examples, expected)}
            verdict["batch_invariant"] = to_onnx.batch_invariant(unchecked, examples[0])
            Path(f"{target}_data").unlink(missing_ok=True)  # an earlier export's, which this one may not need
            for file in Path(folder).iterdir():
                os.replace(file, target.parent / file.name)
        return verdict

    def _tables(self, sampler: str, schedule: str) -> str:
        path, config = f"samplers/{sampler}-{schedule}.npz", self.weights.config("scheduler")

        def make() -> tuple[list[str], dict[str, Any]]:
            (self.output / path).parent.mkdir(exist_ok=True)
            np.savez_compressed(self.output / path, **samplers.tables(config, sampler, schedule))
            return [path], {}

        self.ledger.part(path, self._fingerprint(config, sampler, schedule), make)
        return path

    def _card(self, cards: Sequence[TokenizerCard], paths: Mapping[str, Mapping[str, str]]) -> ModelCard:
        weights, defaults = self.weights, self.weights.call_defaults
        size, multiple = weights.default_size, weights.size_multiple
        sampler, schedule = samplers.default_sampler(weights.config("scheduler"))
        steps, guidance = self.options.num_inference_steps, self.options.guidance_scale
        return ModelCard(
            name=self.options.name,
            latent_channels=weights.config("vae")["latent_channels"],
            vae_scale_factor=weights.vae_scale_factor,
            size_multiple=multiple,
            min_size=max(multiple, size // 4 // multiple * multiple),
            max_size=2 * size // multiple * multiple,
            default_height=size,
            default_width=size,
            default_num_inference_steps=defaults["num_inference_steps"] if steps is None else steps,
            max_num_inference_steps=samplers.MAX_STEPS,
            default_guidance_scale=defaults["guidance_scale"] if guidance is None else guidance,
            default_sampler=sampler,
            default_schedule=schedule,
            force_zeros_for_empty_prompt=weights.index.get("force_zeros_for_empty_prompt", True),
            prediction_type=weights.config("scheduler").get("prediction_type", "epsilon"),
            tokenizers=tuple(cards),
            samplers=paths,
        )

    def _write_manifest(self, card: ModelCard, stages: Mapping[str, Any]) -> None:
        document = {
            "format": FORMAT,
            "family": "sdxl",
            "target": "cpu",
            "model": asdict(card),
            "source": self.source,
            "tools": {tool: version(tool) for tool in TOOLS},
            "stages": stages,
            "artifacts": self.ledger.artifacts,
        }
        unfinished = self.output / f".{FILE_NAME}"
        unfinished.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
        os.replace(unfinished, self.output / FILE_NAME)

    def _assemble(self) -> None:
        repository = self.output / REPOSITORY
        shutil.rmtree(repository, ignore_errors=True)
        assemble(self.output, repository)

    def _fingerprint(self, *parts: Any) -> str:
        return _combined([json.dumps(parts, sort_keys=True, default=str), _exporter_hash()])


def _silence() -> None:
    """The libraries' own bars and notices would drown the export's."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    for library in ("diffusers", "transformers", "onnxscript", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)


def _exporter_hash() -> str:
    """What makes the artifacts: this package's code and the versions of its tools."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return _combined([*map(sha256, sources), *(version(tool) for tool in TOOLS)])


def _combined(parts: Any) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
