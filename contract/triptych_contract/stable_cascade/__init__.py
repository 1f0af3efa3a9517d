"""Stable Cascade: Stage C makes small latents, Stage B larger ones from them, Stage A pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..family import Family, Variant
from .card import CascadeCard
from .mixed import called, mixed
from .samplers import samplers

if TYPE_CHECKING:
    from .settings import CascadeSettings


def _settings() -> type[CascadeSettings]:
    from .settings import CascadeSettings

    return CascadeSettings


def _variants(_card: CascadeCard) -> tuple[Variant, ...]:
    return (Variant("", "Stable Cascade", frozenset(FAMILY.parameters)),)


FAMILY = Family(
    name="stable_cascade",
    title="Stable Cascade",
    hints="CascadeParameters",
    card=CascadeCard,
    load_settings=_settings,
    models={"cascade_tokenizer": "tokenizer"},
    encoders=("cascade_text_encoder", "cascade_decoder_text_encoder"),
    decoder="vqgan",
    variants=_variants,
    staged=lambda _given: True,
    stages={"prior": "Stage C", "decoder": "Stage B"},
    samplers=samplers,
    mixed=mixed,
    called=called,
)
