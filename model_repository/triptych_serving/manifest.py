"""The manifest: what an export holds, by content. A start with a missing or foreign artifact is refused by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

FORMAT = 2
FILE_NAME = "manifest.json"


class ManifestError(Exception):
    """A build cannot be served; names the file, what is wrong and what mends it."""


@dataclass(frozen=True)
class TokenizerCard:
    """One tokenizer file and how prompts are padded: `max_length` tokens with `pad_id`."""

    path: str
    max_length: int
    pad_id: int
    pad_token: str


@dataclass(frozen=True)
class TableCard:
    """One file of sampler tables: 1 … `max_steps` steps; `inpaint` says whether its rows hold where a mask is blended in."""

    path: str
    max_steps: int
    inpaint: bool


@dataclass(frozen=True)
class SamplerCard:
    """A sampler's other names, and its tables by schedule."""

    diffusers: str
    a1111: str
    schedules: Mapping[str, TableCard]

    @classmethod
    def from_json(cls, card: Mapping[str, Any]) -> SamplerCard:
        return cls(**{**card, "schedules": {name: TableCard(**table) for name, table in card["schedules"].items()}})


@dataclass(frozen=True)
class RefinerCard:
    """What sets the refiner apart; `own_text_encoder` where its encoder's weights are not the base's second encoder's."""

    size_multiple: int
    force_zeros_for_empty_prompt: bool
    requires_aesthetics_score: bool
    own_text_encoder: bool


@dataclass(frozen=True)
class LatentScale:
    """How the VAE's latents become the model's: (z − mean)·factor/std; mean and std by channel, or None for 0 and 1."""

    factor: float
    mean: Sequence[float] | None
    std: Sequence[float] | None


@dataclass(frozen=True)
class ModelCard:
    """What a served model can do; all of it comes from the exported folder's configs. Sizes in pixels."""

    name: str
    latent_channels: int
    latent_scale: LatentScale
    vae_scale_factor: int
    size_multiple: int
    min_size: int
    max_size: int
    default_height: int
    default_width: int
    default_num_inference_steps: int
    default_guidance_scale: float
    guidance_embedding_dim: int | None  # a distilled model reads the guidance scale instead of an unconditional row
    max_clip_skip: int
    num_train_timesteps: int
    prediction_type: str
    default_sampler: str
    default_schedule: str
    force_zeros_for_empty_prompt: bool
    refiner: RefinerCard | None
    tokenizers: tuple[TokenizerCard, ...]
    samplers: Mapping[str, SamplerCard]

    @property
    def default_sizes(self) -> dict[str, int]:
        """The named dimensions of the stages' tensors at the model's own size, one image."""
        height, width, scale = self.default_height, self.default_width, self.vae_scale_factor
        latents = {"latent_height": height // scale, "latent_width": width // scale}
        return {"batch": 1, "height": height, "width": width, **latents}

    @cached_property
    def sampler_names(self) -> dict[str, str]:
        """Our name for each sampler by every name it has, in lower case: ours, A1111's, diffusers' where it means one only."""
        classes = [card.diffusers for card in self.samplers.values()]
        names = {card.diffusers: name for name, card in self.samplers.items() if classes.count(card.diffusers) == 1}
        names |= {card.a1111: name for name, card in self.samplers.items()}
        return {known.lower(): name for known, name in {**names, **{name: name for name in self.samplers}}.items()}

    @classmethod
    def from_json(cls, card: Mapping[str, Any]) -> ModelCard:
        if wrong := {field.name for field in fields(cls)} ^ set(card):
            raise ManifestError(f"{FILE_NAME}: model card and this version of Triptych differ in {sorted(wrong)}")
        nested = {
            "latent_scale": LatentScale(**card["latent_scale"]),
            "refiner": card["refiner"] and RefinerCard(**card["refiner"]),
            "tokenizers": tuple(TokenizerCard(**tokenizer) for tokenizer in card["tokenizers"]),
            "samplers": {name: SamplerCard.from_json(sampler) for name, sampler in card["samplers"].items()},
        }
        return cls(**{**card, **nested})


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
            ManifestError: missing, unreadable, or of another format.
        """
        build = Path(build).resolve()
        document = _read_document(build / FILE_NAME)
        return cls(
            build=build,
            family=document["family"],
            target=document["target"],
            model=ModelCard.from_json(document["model"]),
            stages=document["stages"],
            artifacts=document["artifacts"],
        )

    def verify(self) -> None:
        """Check every artifact's size and SHA-256.

        Raises:
            ManifestError: names the first file that is missing, truncated or not the one that was exported.
        """
        for path in self.artifacts:
            self.verified(path)

    def verified(self, path: str) -> Path:
        """The absolute path of one artifact, checked."""
        if path not in self.artifacts:
            raise ManifestError(f"{path}: not listed in {self.build / FILE_NAME}; export the model again")
        expected, file = self.artifacts[path], (self.build / path).resolve()
        if not file.is_relative_to(self.build):
            raise ManifestError(f"{path}: leads outside {self.build}; export the model again")
        if not file.is_file():
            raise ManifestError(f"{path}: missing from {self.build}; export the model again")
        if (size := file.stat().st_size) != expected["bytes"]:
            raise ManifestError(f"{path}: {size} bytes, {expected['bytes']} expected; export the model again")
        if sha256(file) != expected["sha256"]:
            raise ManifestError(f"{path}: SHA-256 differs from the manifest's; export the model again")
        return file

    @cached_property
    def build_hash(self) -> str:
        """One short hash over all artifacts: stages, tokenizers and sampler tables."""
        contents = {path: artifact["sha256"] for path, artifact in self.artifacts.items()}
        return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:16]


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ManifestError(f"{path}: missing; is this a folder that `triptych export` made?") from None
    except (OSError, ValueError) as error:
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
