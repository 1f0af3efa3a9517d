"""The export: a folder of weights in, a build folder with its manifest and a deployable Triton repository out."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import io
import json
import logging
import math
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from triptych_serving.assemble import assemble
from triptych_serving.manifest import (
    FILE_NAME,
    FORMAT,
    LatentScale,
    Manifest,
    ModelCard,
    RefinerCard,
    SamplerCard,
    TableCard,
    TokenizerCard,
    sha256,
)

from . import samplers, to_onnx
from .errors import ExportError
from .ledger import Ledger
from .stages import MODULES, StageSpec, base_specs, refiner_specs
from .tokenizers import alike, export_tokenizer
from .weights import REFINER, Weights

REPOSITORY = "model_repository"
TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "triptych")

# Processes that make sampler tables at once.
MAX_WORKERS = 8

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Options:
    """What the caller may choose; None means what the folder or diffusers say."""

    name: str = "sdxl"
    refiner: Path | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    samplers: Sequence[str] | None = None  # "euler", or "euler:karras" for one schedule


@dataclass(frozen=True)
class Stage:
    """One stage to export, and the folder that its component lies in."""

    weights: Weights
    spec: StageSpec


def export(
    weights_folder: Path, output: Path, options: Options | None = None, report: Report | None = None
) -> Manifest:
    """Export an SDXL folder, and a refiner's beside it, for ONNX Runtime on a CPU; up-to-date parts of `output` are kept.

    `report` is called with what is being done and the share of it that is over.

    Raises:
        ExportError: a folder is not supported, or a stage differs from PyTorch.
    """
    _silence()
    options = options or Options()
    refiner = None if options.refiner is None else Weights.open(options.refiner, REFINER)
    run = _Export(Weights.open(weights_folder), refiner, output, options, report or (lambda _what, _share: None))
    return run.run()


class _Export:
    def __init__(
        self, weights: Weights, refiner: Weights | None, output: Path, options: Options, report: Report
    ) -> None:
        self.weights, self.refiner, self.output, self.options, self.report = weights, refiner, output, options, report
        output.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(output)

    def run(self) -> Manifest:
        if self.refiner is not None:
            _check_refiner(self.weights, self.refiner)
            if self._default_size % self._refined_multiple:
                raise ExportError(
                    f"refiner unet: takes multiples of {self._refined_multiple} pixels; "
                    f"supported: those that divide the base's own size, {self._default_size}"
                )
        cards = [self._tokenizer(part) for part in self.weights.kind.tokenizers]
        if len({card.max_length for card in cards}) > 1:
            raise ExportError(f"tokenizer: lengths {[card.max_length for card in cards]}; SDXL needs two equal ones")
        wanted, pairs = self._stages(cards[0].max_length), self._pairs()
        work = len(wanted) + len(pairs)
        stages = {}
        for done, (name, stage) in enumerate(wanted.items()):
            self.report(name, done / work)
            stages[name] = self._stage(name, stage)
        tables: dict[tuple[str, str], TableCard] = {}
        for pair, card in self._tables(pairs):
            self.report(" × ".join(pair), (len(stages) + len(tables)) / work)
            tables[pair] = card
        self._write_manifest(self._card(cards, tables), stages)
        self._assemble()
        self.ledger.finish()
        self.report("done", 1.0)
        return Manifest.load(self.output)

    def _stages(self, tokens: int) -> dict[str, Stage]:
        stages = {name: Stage(self.weights, spec) for name, spec in base_specs(self.weights, tokens).items()}
        if self.refiner is not None:
            specs = refiner_specs(self.refiner, tokens, own_text_encoder=self._own_text_encoder)
            stages |= {name: Stage(self.refiner, spec) for name, spec in specs.items()}
        return stages

    @cached_property
    def _own_text_encoder(self) -> bool:
        sources = [_source(weights, "text_encoder_2") for weights in (self.weights, self.refiner) if weights]
        return len(set(sources)) > 1

    def _pairs(self) -> list[tuple[str, str]]:
        config = self.weights.config("scheduler")
        default, legal = samplers.default_sampler(config), samplers.legal_pairs(config)
        legal = legal if default in legal else [default, *legal]
        wanted = [tuple(name.split(":", 1)) for name in self.options.samplers or ()]
        for name in wanted:
            if not any(pair[: len(name)] == name for pair in legal):
                raise ExportError(f"sampler: {':'.join(name)!r} given; legal: {', '.join(':'.join(p) for p in legal)}")
        chosen = [pair for pair in legal if not wanted or any(pair[: len(name)] == name for name in wanted)]
        return chosen if default in chosen else [default, *chosen]

    def _tokenizer(self, part: str) -> TokenizerCard:
        path = f"{part}/tokenizer.json"

        def make() -> tuple[list[str], dict[str, Any]]:
            return [path], asdict(export_tokenizer(self.weights.load_tokenizer(part), self.output / path, path))

        made_from = self._fingerprint("tokenizers", _files(self.weights.folder / part))
        return TokenizerCard(**self.ledger.part(part, made_from, make))

    def _stage(self, name: str, stage: Stage) -> dict[str, Any]:
        component = stage.spec.component
        made_from = self._fingerprint(
            "stages to_onnx weights",
            _source(stage.weights, component),
            asdict(stage.spec),
            stage.weights.config(component),
            self._size_multiple(stage.weights),
        )
        return self.ledger.part(name, made_from, lambda: self._make_stage(name, stage))

    def _make_stage(self, name: str, stage: Stage) -> tuple[list[str], dict[str, Any]]:
        path, spec = f"{name}/model.onnx", stage.spec
        verdict = self._convert(name, stage, self.output / path)
        files = [path, *([f"{path}_data"] if (self.output / f"{path}_data").exists() else [])]
        tensors = {kind: {n: asdict(t) for n, t in getattr(spec, kind).items()} for kind in ("inputs", "outputs")}
        digest = _combined(sha256(self.output / file) for file in files)
        return files, {"path": path, "files": files, "sha256": digest, **tensors, **verdict}

    def _convert(self, name: str, stage: Stage, target: Path) -> dict[str, Any]:
        """Export one stage beside its place, check it there, and only then move it in."""
        spec = stage.spec
        examples = to_onnx.example_inputs(spec, self._size_multiple(stage.weights), self.weights.vae_scale_factor)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unchecked-") as folder:
            unchecked = Path(folder) / target.name
            with contextlib.redirect_stdout(io.StringIO()):
                module = MODULES[name](stage.weights.load(spec.component))
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

    def _tables(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], TableCard]]:
        """The table of each pair; schedules that come to the same share one file."""
        config = self.weights.config("scheduler")
        made: dict[tuple[str, str], TableCard] = {}
        with _TableMakers(config, self.output) as makers:
            parts = {pair: (pair[0], samplers.canonical(config, *pair)) for pair in pairs}
            missing = [
                part for part in dict.fromkeys(parts.values()) if not self.ledger.has(*self._table_part(config, part))
            ]
            makers.start(missing)
            for pair, part in parts.items():
                if part not in made:
                    name, made_from = self._table_part(config, part)
                    made[part] = TableCard(**self.ledger.part(name, made_from, partial(makers.result, part)))
                yield pair, made[part]

    def _table_part(self, config: Mapping[str, Any], pair: tuple[str, str]) -> tuple[str, str]:
        return _table_path(*pair), self._fingerprint("samplers tracing", config, pair)

    def _size_multiple(self, weights: Weights) -> int:
        return self.weights.vae_scale_factor * weights.latent_multiple

    @property
    def _refined_multiple(self) -> int:
        """What the sizes that base and refiner both take are multiples of."""
        return math.lcm(*(self._size_multiple(weights) for weights in (self.weights, self.refiner) if weights))

    @property
    def _default_size(self) -> int:
        return int(self.weights.config("unet")["sample_size"]) * self.weights.vae_scale_factor

    def _card(self, cards: Sequence[TokenizerCard], tables: Mapping[tuple[str, str], TableCard]) -> ModelCard:
        weights, defaults = self.weights, self.weights.call_defaults
        unet, vae, scheduler = (weights.config(part) for part in ("unet", "vae", "scheduler"))
        size, multiple = self._default_size, self._size_multiple(weights)
        sampler, schedule = samplers.default_sampler(scheduler)
        steps, guidance = self.options.num_inference_steps, self.options.guidance_scale
        layers = [weights.config(part)["num_hidden_layers"] for part in ("text_encoder", "text_encoder_2")]
        return ModelCard(
            name=self.options.name,
            latent_channels=vae["latent_channels"],
            latent_scale=LatentScale(vae["scaling_factor"], vae.get("latents_mean"), vae.get("latents_std")),
            vae_scale_factor=weights.vae_scale_factor,
            size_multiple=multiple,
            min_size=max(multiple, size // 4 // multiple * multiple),
            max_size=2 * size // multiple * multiple,
            default_height=size,
            default_width=size,
            default_num_inference_steps=defaults["num_inference_steps"] if steps is None else steps,
            default_guidance_scale=defaults["guidance_scale"] if guidance is None else guidance,
            guidance_embedding_dim=unet.get("time_cond_proj_dim"),
            max_clip_skip=min(layers) - 1,
            num_train_timesteps=scheduler.get("num_train_timesteps", 1000),
            prediction_type=scheduler.get("prediction_type", "epsilon"),
            default_sampler=sampler,
            default_schedule=schedule,
            force_zeros_for_empty_prompt=weights.index.get("force_zeros_for_empty_prompt", True),
            refiner=self._refiner_card(),
            tokenizers=tuple(cards),
            samplers=_sampler_cards(tables),
        )

    def _refiner_card(self) -> RefinerCard | None:
        if self.refiner is None:
            return None
        return RefinerCard(
            size_multiple=self._refined_multiple,
            force_zeros_for_empty_prompt=self.refiner.index.get("force_zeros_for_empty_prompt", True),
            requires_aesthetics_score=self.refiner.index.get("requires_aesthetics_score", False),
            own_text_encoder=self._own_text_encoder,
        )

    def _write_manifest(self, card: ModelCard, stages: Mapping[str, Any]) -> None:
        document = {
            "format": FORMAT,
            "family": "sdxl",
            "target": "cpu",
            "model": asdict(card),
            "source": {
                f"{prefix}{component}": _source(weights, component)
                for prefix, weights in (("", self.weights), ("refiner_", self.refiner))
                if weights is not None
                for component in weights.kind.components
            },
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

    def _fingerprint(self, modules: str, *parts: Any) -> str:
        """What a part is made from; `modules` names the code of this package that makes it."""
        code = [sha256(Path(__file__).with_name(f"{module}.py")) for module in modules.split()]
        return _combined([json.dumps(parts, sort_keys=True, default=str), *code, *(version(tool) for tool in TOOLS)])


class _TableMakers:
    """Makes sampler tables, several at once in processes of their own; one at a time where one is all there is."""

    def __init__(self, config: Mapping[str, Any], output: Path) -> None:
        self._config, self._output = dict(config), output
        self._pool: ProcessPoolExecutor | None = None
        self._futures: dict[tuple[str, str], Future[tuple[list[str], dict[str, Any]]]] = {}

    def __enter__(self) -> _TableMakers:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def start(self, pairs: Sequence[tuple[str, str]]) -> None:
        workers = min(len(os.sched_getaffinity(0)), len(pairs) // 4, MAX_WORKERS)
        if workers > 1:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent)
            self._futures = {pair: self._pool.submit(_make_table, self._config, self._output, pair) for pair in pairs}

    def result(self, pair: tuple[str, str]) -> tuple[list[str], dict[str, Any]]:
        if pair in self._futures:
            return self._futures[pair].result()
        return _make_table(self._config, self._output, pair)


def _end_with_parent() -> None:
    """A worker would wait for ever for an export that was killed."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make_table(config: Mapping[str, Any], output: Path, pair: tuple[str, str]) -> tuple[list[str], dict[str, Any]]:
    path = _table_path(*pair)
    (output / path).parent.mkdir(exist_ok=True)
    arrays, facts = samplers.tables(config, *pair)
    (output / path).write_bytes(samplers.packed(arrays))
    return [path], {"path": path, **facts}


def _table_path(sampler: str, schedule: str) -> str:
    return f"samplers/{sampler}-{schedule}.npz.xz"


def _sampler_cards(tables: Mapping[tuple[str, str], TableCard]) -> dict[str, SamplerCard]:
    schedules: dict[str, dict[str, TableCard]] = {}
    for (sampler, schedule), card in tables.items():
        schedules.setdefault(sampler, {})[schedule] = card
    known = samplers.SAMPLERS
    return {name: SamplerCard(known[name].scheduler, known[name].a1111, schedules[name]) for name in sorted(schedules)}


def _check_refiner(base: Weights, refiner: Weights) -> None:
    """The refiner takes over the base's latents, prompt ids and sampler table, so these must be its own as well.

    Raises:
        ExportError: they are not; names what differs.
    """
    ours, theirs = base.config("scheduler"), refiner.config("scheduler")
    for name in sorted({*ours, *theirs} - {"_diffusers_version", "skip_prk_steps", "trained_betas"}):
        if ours.get(name) != theirs.get(name):
            raise ExportError(
                f"refiner scheduler: {name} {theirs.get(name)!r}; supported: the base's, {ours.get(name)!r}"
            )
    if not alike(base.load_tokenizer("tokenizer_2"), refiner.load_tokenizer("tokenizer_2")):
        raise ExportError("refiner tokenizer_2: differs from the base's; supported: the same")
    channels = base.config("unet")["in_channels"], refiner.config("unet")["in_channels"]
    if channels[0] != channels[1]:
        raise ExportError(f"refiner unet: in_channels {channels[1]}; supported: the base's, {channels[0]}")


def _source(weights: Weights, component: str) -> str:
    """A component's weights by content."""
    return _combined(map(_cached_sha256, weights.files(component)))


_cached_sha256 = functools.cache(sha256)


def _files(folder: Path) -> list[str]:
    """A folder's files by content, in the order of their names."""
    return [f"{file.name} {sha256(file)}" for file in sorted(folder.iterdir()) if file.is_file()]


def _silence() -> None:
    """The libraries' own bars and notices would drown the export's."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    for library in ("diffusers", "transformers", "onnxscript", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)


def _combined(parts: Any) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
