"""The export: a folder of weights in, a build folder with its manifest and a deployable Triton repository out."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

from triptych_contract.cards import ModelCard, PreviewCard, TableCard, TokenizerCard
from triptych_serving.assemble import assemble
from triptych_serving.manifest import FILE_NAME, FORMAT, Manifest
from triptych_serving.tensorrt.library import CUDA_TARGET, TARGETS

from . import apart, half
from .calibration import largest_inputs
from .cuda import CudaGraphs
from .errors import ExportError
from .options import ExportOptions
from .parts import PreviewRecipe, StageRecipe, TableRecipe, Workshop, tools
from .sdxl.recipe import SdxlExport
from .stable_cascade.recipe import CascadeExport
from .tensorrt.engines import Engines, engines_of
from .weights import Weights, combined, read_index

__all__ = ["ExportOptions", "export"]

REPOSITORY = "model_repository"

Report = Callable[[str, float], None]


class FamilyExport(Protocol):
    """What sets a family of models apart. Its constructor checks the folders."""

    name: str

    @property
    def tokenizers(self) -> Mapping[str, Weights]:
        """The folder of each tokenizer."""

    def stages(self, tokens: int) -> Mapping[str, StageRecipe]:
        """By name, in the order in which they are made."""

    def tables(self) -> Mapping[Any, TableRecipe]:
        """By whatever tells them apart."""

    def previews(self, build: Path) -> Mapping[str, PreviewRecipe]:
        """By stage; `build` holds the stages when they are made."""

    def card(
        self,
        tokenizers: tuple[TokenizerCard, ...],
        tables: Mapping[Any, TableCard],
        previews: Mapping[str, PreviewCard],
    ) -> ModelCard:
        """What the served model can do."""

    def layout(self) -> Mapping[str, bytes]:
        """Small files by path, with which other programs know the build's folder."""

    def sources(self) -> Mapping[str, str]:
        """The weights of each component by content."""


FAMILIES: dict[str, Callable[[Path, ExportOptions], FamilyExport]] = {
    "StableDiffusionXLPipeline": SdxlExport.open,
    "StableDiffusionXLInpaintPipeline": SdxlExport.open,
    "StableCascadePriorPipeline": CascadeExport.open,
    "StableCascadeDecoderPipeline": CascadeExport.open,
}


def export(
    weights_folder: Path, output: Path, options: ExportOptions | None = None, report: Report | None = None
) -> Manifest:
    """Export a folder of SDXL or Stable Cascade for `options.target`; up-to-date parts of `output` are kept.

    `report` is called with what is being done and the share of it that is over.

    Raises:
        ExportError: a folder or option is not supported, or a stage differs from PyTorch.
    """
    _silence()
    pipeline = read_index(weights_folder).get("_class_name")
    if pipeline not in FAMILIES:
        known = ", ".join(name for name in FAMILIES if "Decoder" not in name)
        raise ExportError(f"model_index.json: _class_name {pipeline!r}; supported: {known}")
    options = options or ExportOptions()
    engines = engines_of(options, output) if options.target in TARGETS else None
    graphs = CudaGraphs(output, options.precisions) if options.target == CUDA_TARGET else None
    family = FAMILIES[pipeline](weights_folder, options)
    return _Export(family, output, report or (lambda _what, _share: None), options.target, engines, graphs).run()


class _Export:
    def __init__(
        self,
        family: FamilyExport,
        output: Path,
        report: Report,
        target: str,
        engines: Engines | None,
        graphs: CudaGraphs | None,
    ) -> None:
        self.family, self.output, self.report = family, output, report
        self.target, self.engines, self.graphs = target, engines, graphs
        self.workshop = Workshop(output)

    def run(self) -> Manifest:
        family, workshop = self.family, self.workshop
        tokenizers = tuple(workshop.tokenizer(weights, part) for part, weights in family.tokenizers.items())
        lengths = {card.max_length for card in tokenizers}
        if len(lengths) > 1:
            raise ExportError(f"tokenizer: lengths {[card.max_length for card in tokenizers]}; supported: equal ones")
        wanted = family.stages(*lengths)
        if self.engines is not None:
            self.engines.check(wanted)
        tables, previews = family.tables(), family.previews(self.output)
        work = len(wanted) + len(tables) + len(previews)
        stages: dict[str, Any] = {}
        table_cards: dict[Any, TableCard] = {}
        maps: dict[str, PreviewCard] = {}
        for name, stage in wanted.items():
            self.report(name, len(stages) / work)
            stages[name] = workshop.stage(name, stage)
        for key, table in workshop.tables(tables):
            self.report(tables[key].path, (len(stages) + len(table_cards)) / work)
            table_cards[key] = table
        for name, preview in workshop.previews(previews):
            self.report(f"preview of {name}", (len(stages) + len(tables) + len(maps)) / work)
            maps[name] = preview
        card = family.card(tokenizers, table_cards, maps)
        checked = Manifest(self.output.resolve(), family.name, "cpu", card, stages, workshop.ledger.artifacts)
        if self.target == "cpu":
            for name in [one for one in apart.STAGES if one in stages]:
                stages[name] = {**stages[name], **self._apart_of(name, stages[name])}
        else:
            for name in [one for one in half.STAGES if one in stages]:
                self.report(f"{name}: in half precision", 1.0)
                stages[name] = {**stages[name], **self._half_of(name, checked)}
        if self.engines is not None:
            made = {name: self._engines_of(self.engines, name, checked) for name in stages}
            stages = {name: {**facts, **made[name]} for name, facts in stages.items()}
        if self.graphs is not None:
            stages = {name: {**facts, **self._graph_of(self.graphs, name, facts)} for name, facts in stages.items()}
        workshop.layout(family.layout())
        self._write_manifest(card, stages)
        self._assemble()
        workshop.ledger.finish()
        self.report("done", 1.0)
        return Manifest.load(self.output)

    def _engines_of(self, engines: Engines, name: str, checked: Manifest) -> Mapping[str, Any]:
        wanted = engines.wanted(name, checked.stages[name], checked.model)
        made_from = combined(key.name for key in wanted.keys.values())
        report = partial(self._report_engine, name)
        calibrate = cache(partial(largest_inputs, checked, name, engines.target.calibration_prompts, report))
        return self.workshop.ledger.part(
            f"engines of {name}", made_from, partial(engines.make, wanted, report, calibrate)
        )

    def _half_of(self, name: str, checked: Manifest) -> Mapping[str, Any]:
        made_from = half.made_from(checked.stages[name]["sha256"])
        return self.workshop.ledger.part(f"half precision of {name}", made_from, partial(half.make, checked, name))

    def _apart_of(self, name: str, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        self.report(f"{name}: adapters apart", 1.0)
        make = partial(apart.make, self.output, name, facts)
        return self.workshop.ledger.part(f"{name} apart", apart.made_from(facts), make)

    def _graph_of(self, graphs: CudaGraphs, name: str, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        self.report(f"{name}: in its precision", 1.0)
        make = partial(graphs.make, name, facts)
        return self.workshop.ledger.part(f"graph of {name}", graphs.made_from(name, facts), make)

    def _report_engine(self, name: str, phase: str, share: float) -> None:
        self.report(f"{name}: {phase}", share)

    def _write_manifest(self, card: ModelCard, stages: Mapping[str, Any]) -> None:
        document = {
            "format": FORMAT,
            "family": self.family.name,
            "target": self.target,
            "model": asdict(card),
            "source": self.family.sources(),
            "tools": tools(),
            "stages": stages,
            "artifacts": self.workshop.ledger.artifacts,
        }
        unfinished = self.output / f".{FILE_NAME}"
        unfinished.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")
        os.replace(unfinished, self.output / FILE_NAME)

    def _assemble(self) -> None:
        repository = self.output / REPOSITORY
        shutil.rmtree(repository, ignore_errors=True)
        assemble([self.output], repository)


def _silence() -> None:
    """The libraries' own bars and notices would drown the export's."""
    import diffusers
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    diffusers.utils.logging.set_verbosity_error()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    for library in ("diffusers", "transformers", "onnxscript", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)
