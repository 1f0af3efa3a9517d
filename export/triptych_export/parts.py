"""How the parts of a build are made, whatever the family: tokenizers, stages, sampler tables, preview maps.

A part is kept where it would be made from the same things: its own files and configs, and the code that makes it.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from triptych_contract.cards import PreviewCard, TableCard, TokenizerCard
from triptych_serving.manifest import sha256
from triptych_serving.tensorrt.library import package_version

from . import samplers, to_onnx
from .errors import ExportError
from .ledger import Facts, Ledger
from .sharing import share
from .stages import StageSpec
from .tokenizers import export_tokenizer
from .weights import Weights, combined

TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "triptych")

# Processes that make sampler tables at once.
MAX_WORKERS = 8

Key = TypeVar("Key", bound=Hashable)
Made = tuple[list[str], Facts]  # the files of a part, and what is known about it


@dataclass(frozen=True)
class StageRecipe:
    """One stage to export."""

    weights: Weights
    spec: StageSpec
    module: Callable[[Any], nn.Module]  # the graph's function, around the component
    sizes: Sequence[Mapping[str, int]]  # named dimensions that it is checked at; traced at the first, all above 1
    code: str  # modules of this package that make it
    as_stored: bool = False  # whether `module` takes weights in half precision, which halves the memory
    made_of: str = "PyTorch"  # what the graph is checked against
    also: tuple[str, ...] = ()  # what else `module` reads, by content
    shares: str = ""  # the stage before it that has the same weights, whose file it refers to

    def write(self, path: Path, examples: list[to_onnx.Arrays]) -> list[to_onnx.Arrays]:
        """Write the graph to `path`; what the weights make of each example without it."""
        module = self.module(self.weights.load(self.spec.component, self.as_stored))
        expected = to_onnx.references(module, self.spec, examples)
        to_onnx.convert(module, self.spec, examples, path)
        return expected


@dataclass(frozen=True)
class TableRecipe:
    """One file of sampler tables to make; schedules that mean the same have equal ones."""

    path: str
    made_from: tuple[Any, ...]
    make: Callable[[], tuple[samplers.Arrays, Facts]]  # runs in another process
    code: str


@dataclass(frozen=True)
class PreviewRecipe:
    """One preview map to fit, once the stages are there; `make` gets the maps before it, by name."""

    name: str
    made_from: tuple[Any, ...]
    make: Callable[[Mapping[str, PreviewCard]], PreviewCard]
    code: str


class Workshop:
    """Makes the parts of the build in `output`, or keeps them."""

    def __init__(self, output: Path) -> None:
        output.mkdir(parents=True, exist_ok=True)
        self.output, self.ledger = output, Ledger(output)
        self._made: dict[str, Facts] = {}

    def tokenizer(self, weights: Weights, part: str) -> TokenizerCard:
        """The tokenizer of a folder."""
        path = f"{part}/tokenizer.json"

        def make() -> Made:
            tokenizer, inversions = weights.load_tokenizer(part), weights.kind.inversions
            card = export_tokenizer(tokenizer, self.output / path, path, inversions=inversions)
            return [file for file in (card.path, card.multi_vector) if file], asdict(card)

        made_from = fingerprint("tokenizers", _files(weights.folder / part))
        return TokenizerCard(**self.ledger.part(part, made_from, make))

    def stage(self, name: str, stage: StageRecipe) -> Facts:
        """What the manifest says about a stage."""
        component, spec = stage.spec.component, asdict(stage.spec)
        own = (stage.weights.source(component), spec, stage.weights.config(component), stage.sizes, *stage.also)
        donor = self._made.get(stage.shares)
        code = f"{stage.code} stages to_onnx attention weights{' sharing' if donor else ''}"
        made_from = fingerprint(code, *own, *([donor["sha256"]] if donor else []))
        made = self._made[name] = self.ledger.part(name, made_from, lambda: self._make_stage(name, stage, donor))
        return made

    def tables(self, tables: Mapping[Key, TableRecipe]) -> Iterator[tuple[Key, TableCard]]:
        """The card of each table; those of one path are one file."""
        made: dict[str, TableCard] = {}
        by_path = {table.path: table for table in tables.values()}
        with _TableMakers(self.output) as makers:
            makers.start([table for table in by_path.values() if not self.ledger.has(*_table_part(table))])
            for key, table in tables.items():
                if table.path not in made:
                    facts = self.ledger.part(*_table_part(table), partial(makers.result, table))
                    made[table.path] = TableCard(**facts)
                yield key, made[table.path]

    def previews(self, previews: Mapping[str, PreviewRecipe]) -> Iterator[tuple[str, PreviewCard]]:
        """The map of each stage; those of one name are one map."""
        made: dict[str, PreviewCard] = {}
        for stage, preview in previews.items():
            if preview.name not in made:
                made_from = fingerprint(preview.code, *preview.made_from)
                facts = self.ledger.part(preview.name, made_from, partial(_fit, preview, made))
                made[preview.name] = PreviewCard(**facts)
            yield stage, made[preview.name]

    def layout(self, files: Mapping[str, bytes]) -> None:
        """Small files that other programs read, by path."""

        def make() -> Made:
            for path, content in files.items():
                (self.output / path).parent.mkdir(parents=True, exist_ok=True)
                (self.output / path).write_bytes(content)
            return list(files), {}

        made_from = combined(f"{path} {hashlib.sha256(content).hexdigest()}" for path, content in files.items())
        self.ledger.part("layout", made_from, make)

    def _make_stage(self, name: str, stage: StageRecipe, donor: Facts | None) -> Made:
        path, spec = f"{name}/model.onnx", stage.spec
        verdict = self._convert(name, stage, self.output / path)
        shared = share(self.output / path, self.output / donor["path"], self.output) if donor else []
        files = [path, *([f"{path}_data"] if (self.output / f"{path}_data").exists() else []), *shared]
        if shared:
            verdict["shares"] = stage.shares
        tensors = {kind: {n: asdict(t) for n, t in getattr(spec, kind).items()} for kind in ("inputs", "outputs")}
        digest = combined(sha256(self.output / file) for file in files)
        layers = {"layers": spec.layers} if spec.layers else {}
        return files, {"path": path, "files": files, "sha256": digest, **tensors, **layers, **verdict}

    def _convert(self, name: str, stage: StageRecipe, target: Path) -> Facts:
        """Export one stage beside its place, check it there, and only then move it in."""
        examples = to_onnx.example_inputs(stage.spec, stage.sizes)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unchecked-") as folder:
            unchecked = Path(folder) / target.name
            with contextlib.redirect_stdout(io.StringIO()):
                expected = stage.write(unchecked, examples)
            gc.collect()  # a full-size module and ONNX Runtime's copy of it do not fit side by side
            difference = to_onnx.check_graph(name, unchecked, examples, expected, stage.made_of)
            verdict: Facts = {"max_difference": difference, "made_of": stage.made_of}
            verdict["batch_invariant"] = to_onnx.batch_invariant(unchecked, examples[0])
            Path(f"{target}_data").unlink(missing_ok=True)  # an earlier export's, which this one may not need
            for file in Path(folder).iterdir():
                os.replace(file, target.parent / file.name)
        return verdict


def fingerprint(modules: str, *parts: Any) -> str:
    """What a part is made from; `modules` names the code of this package that makes it."""
    code = [sha256(Path(__file__).parent / f"{module}.py") for module in modules.split()]
    return combined([json.dumps(parts, sort_keys=True, default=str), *code, *tools().values()])


def tools() -> dict[str, str]:
    """The versions of what an export is made with."""
    return {tool: package_version(tool) for tool in TOOLS}


def require_equal(field: str, given: Any, legal: Any, whose: str) -> None:
    """Two folders, or two parts of one, must agree.

    Raises:
        ExportError: they do not; names the field and both values.
    """
    if given != legal:
        raise ExportError(f"{field} {given!r}; supported: {whose}, {legal!r}")


def _fit(preview: PreviewRecipe, made: Mapping[str, PreviewCard]) -> Made:
    return [], asdict(preview.make(made))


def _table_part(table: TableRecipe) -> tuple[str, str]:
    return table.path, fingerprint(table.code, *table.made_from)


def _files(folder: Path) -> list[str]:
    """A folder's files by content, in the order of their names."""
    return [f"{file.name} {sha256(file)}" for file in sorted(folder.iterdir()) if file.is_file()]


class _TableMakers:
    """Makes sampler tables, several at once in processes of their own; one at a time where one is all there is."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._pool: ProcessPoolExecutor | None = None
        self._futures: dict[str, Future[Made]] = {}

    def __enter__(self) -> _TableMakers:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def start(self, tables: Sequence[TableRecipe]) -> None:
        workers = min(len(os.sched_getaffinity(0)), len(tables) // 4, MAX_WORKERS)
        if workers > 1:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent)
            self._futures = {table.path: self._pool.submit(_make_table, self._output, table) for table in tables}

    def result(self, table: TableRecipe) -> Made:
        if table.path in self._futures:
            return self._futures[table.path].result()
        return _make_table(self._output, table)


def _end_with_parent() -> None:
    """A worker would wait for ever for an export that was killed."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _make_table(output: Path, table: TableRecipe) -> Made:
    (output / table.path).parent.mkdir(exist_ok=True)
    arrays, facts = table.make()
    (output / table.path).write_bytes(samplers.packed(arrays))
    return [table.path], {"path": table.path, **facts}
