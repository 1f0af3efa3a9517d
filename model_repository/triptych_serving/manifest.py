"""The manifest: what an export holds, by content. A start with a missing or foreign artifact is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict

from triptych_contract.cards import CardError, ModelCard
from triptych_contract.errors import InvalidRequest
from triptych_contract.families import FAMILIES

from . import schema
from .tensorrt.library import GPU_TARGETS

FORMAT = 3
FILE_NAME = "manifest.json"
# What a graph calls the step that a row is at: diffusers' UNet2DConditionModel and StableCascadeUNet.
TIMESTEPS = ("timestep", "timestep_ratio")


class Artifact(TypedDict):
    sha256: str
    bytes: int


class Limit(TypedDict, total=False):
    limit: int | None  # whole numbers lie below it


class Tensor(Limit):
    dtype: Literal["float32", "float16", "int64", "uint8"]
    shape: Sequence[int | str]


class EngineMemory(TypedDict, total=False):
    weights_bytes: int
    activation_bytes: Sequence[int]  # by profile


class Engine(EngineMemory):
    path: str
    version: str
    onnx: str


class Profile(TypedDict):
    name: str
    shapes: Mapping[str, Sequence[Sequence[int]]]


class PlanFacts(TypedDict, total=False):
    engines: Mapping[str, Engine]
    profiles: Sequence[Profile]
    precision: str


class Adapted(TypedDict, total=False):
    layers: Mapping[str, Sequence[int]]


class Shared(TypedDict, total=False):
    shares: str  # the stage in whose files some of its weights are


class Stage(PlanFacts, Adapted, Shared):
    files: Sequence[str]
    sha256: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    batch_invariant: bool


class Document(TypedDict):
    """What is read of a `manifest.json`; the rest tells people how it was made."""

    family: Literal[tuple(FAMILIES)]  # type: ignore[valid-type]
    target: Literal[("cpu", *GPU_TARGETS)]  # type: ignore[valid-type]
    model: Mapping[str, Any]  # by the family's card
    stages: Mapping[str, Stage]
    artifacts: Mapping[str, Artifact]


class ManifestError(Exception):
    """A build cannot be served; names the file, what is wrong and what mends it."""


@dataclass(frozen=True)
class Manifest:
    """A build folder's `manifest.json`. `artifacts` maps relative paths to {"sha256", "bytes"}."""

    build: Path
    family: str
    target: str
    model: ModelCard
    stages: Mapping[str, Mapping[str, Any]]
    artifacts: Mapping[str, Mapping[str, Any]]

    @classmethod
    def load(cls, build: Path) -> Manifest:
        """Read `build/manifest.json`.

        Raises:
            ManifestError: missing, unreadable, of another format, or not what an export writes; names the field.
        """
        build = Path(build).absolute()
        document = _read_document(build / FILE_NAME)
        try:
            model = _checked_card(document)
        except (CardError, schema.SchemaError) as error:
            raise ManifestError(f"{build / FILE_NAME}: {error}; export the model again") from None
        return cls(build, document["family"], document["target"], model, document["stages"], document["artifacts"])

    def verify(self) -> None:
        """Check the model's own defaults, and every artifact's size and SHA-256, several beside each other.

        Raises:
            ManifestError: names the first file that is missing, truncated or not the one that was exported, or the manifest.
        """
        self._check_defaults()
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for _ in pool.map(self.verified, self.artifacts):
                pass

    def _check_defaults(self) -> None:
        """Whether the least request can be read by the model's card: sizes, samplers and schedules fit together."""
        try:
            _ = self.model.smallest_sizes, self.model.largest_sizes
            FAMILIES[self.family].settings.parse({"prompt": "a"}, self.model)
        except (ArithmeticError, InvalidRequest, LookupError, TypeError, ValueError) as error:
            words = f"model: its own defaults are not legal ({error}); export the model again"
            raise ManifestError(f"{self.build / FILE_NAME}: {words}") from None

    def verified(self, path: str) -> Path:
        """The absolute path of one artifact, checked."""
        if path not in self.artifacts:
            raise ManifestError(f"{path}: not listed in {self.build / FILE_NAME}; export the model again")
        expected, file = self.artifacts[path], self.build / path
        if not file.resolve().is_relative_to(self.build.resolve()):
            raise ManifestError(f"{path}: leads outside {self.build}; export the model again")
        if not file.is_file():
            raise ManifestError(f"{path}: missing from {self.build}; export the model again")
        if (size := file.stat().st_size) != expected["bytes"]:
            raise ManifestError(f"{path}: {size} bytes, {expected['bytes']} expected; export the model again")
        if sha256(file) != expected["sha256"]:
            raise ManifestError(f"{path}: SHA-256 differs from the manifest's; export the model again")
        return file

    def stage_path(self, name: str) -> Path:
        """The ONNX file of a stage, this stage's files checked."""
        files = [self.verified(file) for file in self.stages[name]["files"]]
        return files[0]

    @cached_property
    def one_timestep(self) -> frozenset[str]:
        """The denoisers whose graph takes one timestep for all rows of a batch, as Optimum exports them, not one for each."""
        return frozenset(
            name
            for name, stage in self.stages.items()
            if any(not stage["inputs"][step]["shape"] for step in stage["inputs"].keys() & set(TIMESTEPS))
        )

    @cached_property
    def build_hash(self) -> str:
        """One short hash over all artifacts: stages, tokenizers and sampler tables."""
        contents = {path: artifact["sha256"] for path, artifact in self.artifacts.items()}
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]


def _checked_card(document: dict[str, Any]) -> ModelCard:
    """The card of a document, all of which is checked."""
    schema.check(document, Document)
    family, given = FAMILIES[document["family"]], document["stages"].keys()
    schema.check(document["model"], family.card, "model")
    card = family.card.from_json(document["model"])
    sets = ({*family.adapted.values()}, {*family.prompted.values()})  # a build has all of one, or none
    legal = {*family.card.denoisers, *family.encoders, family.decoder, *family.models, *card.more_stages}.union(*sets)
    for name in sorted(given - legal):
        raise schema.SchemaError(f"stages.{name}: unknown; legal: {', '.join(sorted(legal))}")
    needed = {family.card.denoisers[0], family.encoders[0], family.decoder, *card.more_stages}
    needed = needed.union(*(one for one in sets if one & given))
    for name in sorted(needed - given):
        raise schema.SchemaError(f"stages.{name}: missing")
    return card


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = schema.read(path)
    except FileNotFoundError:
        raise ManifestError(f"{path}: missing; is this a folder that `triptych export` made?") from None
    except OSError as error:
        raise ManifestError(f"{path}: unreadable ({error.strerror})") from None
    except ValueError as error:
        raise ManifestError(f"{path}: unreadable ({error})") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ManifestError(f"{path}: not a manifest of format {FORMAT}; export the model again")
    return document


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
