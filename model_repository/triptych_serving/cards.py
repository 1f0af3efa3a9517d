"""What a served model can do: the cards in a manifest. All of it comes from the exported folder's configs. Sizes in pixels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, TypeVar

AnyCard = TypeVar("AnyCard", bound="ModelCard")


class CardError(Exception):
    """A card is of another version of Triptych."""


@dataclass(frozen=True)
class TokenizerCard:
    """One tokenizer file and how prompts are padded: `max_length` tokens with `pad_id`.

    `multi_vector` is the file of words that stand for several tokens, where there are any.
    """

    path: str
    max_length: int
    pad_id: int
    pad_token: str
    multi_vector: str | None = None


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
class PreviewCard:
    """A linear map from latents to pixels: each latent x (C values) is drawn as `patch`² pixels, weightsᵀ·x + bias in 0 … 1.

    `weights` has C rows of 3·`patch`² numbers and `bias` as many, by row, column and colour.
    """

    patch: int
    weights: Sequence[Sequence[float]]
    bias: Sequence[float]


@dataclass(frozen=True)
class ModelCard(ABC):
    """What the families have in common. `latent_channels` are what pictures are decoded from; `previews` are by stage."""

    denoisers: ClassVar[tuple[str, ...]]  # the stages that the loop runs

    name: str
    latent_channels: int
    min_size: int
    max_size: int
    default_height: int
    default_width: int
    default_num_inference_steps: int
    tokenizers: tuple[TokenizerCard, ...]
    previews: Mapping[str, PreviewCard]

    @property
    def default_sizes(self) -> dict[str, int]:
        """The named dimensions of the stages' tensors at the model's own size, one image."""
        return self.sizes(self.default_height, self.default_width)

    @property
    def smallest_sizes(self) -> dict[str, int]:
        """The same at the smallest legal size."""
        return self.sizes(self.min_size, self.min_size)

    @abstractmethod
    def sizes(self, height: int, width: int) -> dict[str, int]:
        """The named dimensions of the stages' tensors for one image of this size."""

    @classmethod
    def from_json(cls: type[AnyCard], card: Mapping[str, Any]) -> AnyCard:
        """A card as `dataclasses.asdict` wrote it.

        Raises:
            CardError: it has other fields.
        """
        if wrong := {field.name for field in fields(cls)} ^ set(card):
            raise CardError(f"model card and this version of Triptych differ in {sorted(wrong)}")
        return cls(**{**card, **cls._nested(card)})

    @classmethod
    def _nested(cls, card: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "tokenizers": tuple(TokenizerCard(**tokenizer) for tokenizer in card["tokenizers"]),
            "previews": {stage: PreviewCard(**preview) for stage, preview in card["previews"].items()},
        }


@dataclass(frozen=True)
class SdxlCard(ModelCard):
    """SDXL, base and perhaps refiner."""

    denoisers: ClassVar[tuple[str, ...]] = ("unet", "refiner_unet")

    latent_scale: LatentScale
    vae_scale_factor: int
    size_multiple: int
    default_guidance_scale: float
    guidance_embedding_dim: int | None  # a distilled model reads the guidance scale instead of an unconditional row
    max_clip_skip: int
    num_train_timesteps: int
    prediction_type: str
    default_sampler: str
    default_schedule: str
    force_zeros_for_empty_prompt: bool
    refiner: RefinerCard | None
    samplers: Mapping[str, SamplerCard]

    def sizes(self, height: int, width: int) -> dict[str, int]:
        scale = self.vae_scale_factor
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
    def _nested(cls, card: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **super()._nested(card),
            "latent_scale": LatentScale(**card["latent_scale"]),
            "refiner": card["refiner"] and RefinerCard(**card["refiner"]),
            "samplers": {name: SamplerCard.from_json(sampler) for name, sampler in card["samplers"].items()},
        }


@dataclass(frozen=True)
class CascadeCard(ModelCard):
    """Stable Cascade: Stage C (`prior`), Stage B (`decoder`) and Stage A (`vqgan`).

    `resolution_multiple` pixels make a latent of Stage C (rounded up) and `latent_dim_scale` latents of Stage B one of Stage C
    (rounded down), as in diffusers; `vqgan_scale_factor` pixels make a latent of Stage B, which takes multiples of
    `latent_multiple` latents. `default_num_inference_steps` are Stage B's.
    """

    denoisers: ClassVar[tuple[str, ...]] = ("prior", "decoder")

    prior_channels: int
    resolution_multiple: float
    latent_dim_scale: float
    vqgan_scale_factor: int
    prior_multiple: int  # Stage C takes multiples of so many of its latents
    latent_multiple: int
    default_prior_num_inference_steps: int
    default_prior_guidance_scale: float
    default_decoder_guidance_scale: float
    own_text_encoder: bool  # whether Stage B's text encoder has other weights than Stage C's
    prior_table: TableCard
    decoder_table: TableCard

    def prior_size(self, pixels: int) -> int:
        """Latents of Stage C along a side of so many pixels: diffusers' `StableCascadePriorPipeline.prepare_latents`."""
        return math.ceil(pixels / self.resolution_multiple)

    def latent_size(self, prior: int) -> int:
        """Latents of Stage B along so many of Stage C: diffusers' `StableCascadeDecoderPipeline.prepare_latents`."""
        return int(prior * self.latent_dim_scale)

    @cached_property
    def legal_sizes(self) -> list[int]:
        """The sides, in pixels, that come out as they are asked for."""
        return [size for size in self._producible() if self.min_size <= size <= self.max_size]

    def _producible(self) -> list[int]:
        sizes = []
        for prior in range(self.prior_multiple, self.prior_size(self.max_size) + 1, self.prior_multiple):
            latents = self.latent_size(prior)
            size = latents * self.vqgan_scale_factor
            if latents and latents % self.latent_multiple == 0 and self.prior_size(size) == prior:
                sizes.append(size)
        return sizes

    def sizes(self, height: int, width: int) -> dict[str, int]:
        sides = {"height": height, "width": width}
        prior = {f"prior_{side}": self.prior_size(pixels) for side, pixels in sides.items()}
        latents = {f"latent_{side}": self.latent_size(prior[f"prior_{side}"]) for side in sides}
        return {"batch": 1, **sides, **prior, **latents}

    @classmethod
    def _nested(cls, card: Mapping[str, Any]) -> dict[str, Any]:
        tables = {name: TableCard(**card[name]) for name in ("prior_table", "decoder_table")}
        return {**super()._nested(card), **tables}


CARDS: dict[str, type[ModelCard]] = {"sdxl": SdxlCard, "stable_cascade": CascadeCard}
