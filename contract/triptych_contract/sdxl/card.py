"""What a served SDXL can do. Sizes in pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

from ..cards import ModelCard, TableCard

MAX_CHUNKS = 8  # of a prompt, which the text encoders read as so many rows: both prompts' are one of their batches
# The stage that runs in the UNet's place where there are controls, and the input that takes what those make.
CONTROLLED, CONTROL = "unet_control", "control"


def control_stage(name: str) -> str:
    """Give the stage of a control."""
    return f"control_{name}"


def picture_stage(name: str) -> str:
    """Give the stage that reads a control's picture, once for all steps."""
    return f"picture_{name}"


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
class MergedLora:
    """A LoRA file that is part of the weights: its name without suffix, its content, and how much of it was added."""

    name: str
    sha256: str
    weight: float


@dataclass(frozen=True)
class LatentScale:
    """How the VAE's latents become the model's: (z − mean)·factor/std; mean and std by channel, or None for 0 and 1."""

    factor: float
    mean: Sequence[float] | None
    std: Sequence[float] | None


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
    adapter_rank: int  # the largest sum of the ranks of a request's adapters; 0 where it takes none
    samplers: Mapping[str, SamplerCard]
    merged: Sequence[MergedLora]
    inpainting: bool = False  # its UNet reads a mask and what is outside it (nine channels), so that nothing is blended
    ip_adapters: Sequence[str] = ()  # the names of its image prompts (IP-Adapters)
    controls: Sequence[str] = ()  # their names
    control_bytes: int = 0  # what all controls together add to a row at the model's own size, in memory

    @property
    def largest_sizes(self) -> dict[str, int]:
        return {**super().largest_sizes, "tokens": MAX_CHUNKS * self.tokenizers[0].max_length}

    @property
    def more_stages(self) -> tuple[str, ...]:
        own = [stage for name in self.controls for stage in (picture_stage(name), control_stage(name))]
        return (CONTROLLED, *own) if own else ()

    @property
    def told(self) -> dict[str, Any]:
        return {"merged": [asdict(lora) for lora in self.merged]} if self.merged else {}

    def sizes(self, height: int, width: int) -> dict[str, int]:
        scale = self.vae_scale_factor
        latents = {"latent_height": height // scale, "latent_width": width // scale}
        # The UNet's least latents, at whose size controls' tensor is.
        least = {"least_height": height // self.size_multiple, "least_width": width // self.size_multiple}
        return {
            "batch": 1,
            "height": height,
            "width": width,
            "tokens": self.tokenizers[0].max_length,
            **latents,
            **least,
        }

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
            "merged": tuple(MergedLora(**lora) for lora in card["merged"]),
            "ip_adapters": tuple(card.get("ip_adapters", ())),
            "controls": tuple(card.get("controls", ())),
        }
