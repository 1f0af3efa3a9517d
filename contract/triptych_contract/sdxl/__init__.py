"""SDXL: a base model, and perhaps a refiner that takes over from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..family import Family, Variant
from .card import SdxlCard
from .mixed import called, mixed
from .samplers import samplers

if TYPE_CHECKING:
    from .settings import SdxlSettings


def _settings() -> type[SdxlSettings]:
    from .settings import SdxlSettings

    return SdxlSettings


def _variants(card: SdxlCard) -> tuple[Variant, ...]:
    lacks = {
        **dict.fromkeys(("lora",), not card.adapter_rank),
        **dict.fromkeys(("ip_adapter_image", "ip_adapter", "ip_adapter_scale"), not card.ip_adapters),
        **dict.fromkeys(("control", "control_images"), not card.controls),
    }
    every = frozenset(name for name in FAMILY.parameters if not lacks.get(name))
    refiners = frozenset(name for name, one in FAMILY.parameters.items() if one.group == "refiner")
    plain = Variant("", "SDXL", every - refiners)
    if card.refiner is None:
        return (plain,)
    # 0.8 is where diffusers' own examples hand over.
    defaults = {"denoising_end": 0.8, "aesthetic_score": 6.0, "negative_aesthetic_score": 2.5}
    return plain, Variant("refiner", "SDXL + refiner", every, defaults)


FAMILY = Family(
    name="sdxl",
    title="SDXL",
    hints="Parameters",
    card=SdxlCard,
    load_settings=_settings,
    models={"tokenizer": "tokenizer", "vae_encoder": "vae_encoder"},
    encoders=("text_encoder", "text_encoder_2", "refiner_text_encoder_2"),
    decoder="vae_decoder",
    variants=_variants,
    staged=lambda given: given.get("denoising_end") is not None,
    stages={"unet": "base", "refiner_unet": "refiner"},
    samplers=samplers,
    mixed=mixed,
    called=called,
    adapted={name: f"{name}_adapters" for name in ("text_encoder", "text_encoder_2", "unet")},
    prompted={"unet": "unet_image_prompts", "vae_encoder": "image_prompt_encoder"},
    first_held=(
        "prompt",
        "negative_prompt",
        "seed",
        "num_inference_steps",
        "guidance_scale",
        "height",
        "width",
        "sampler",
        "schedule",
        "output_format",
    ),
)
