"""Stable Cascade: Stage C makes small latents, Stage B larger ones from them, Stage A pixels."""

from __future__ import annotations

from ..family import Family, Variant
from ..settings import parameters
from .card import CascadeCard
from .mixed import called, mixed
from .samplers import samplers
from .settings import CascadeSettings

_PLAIN = Variant("", "Stable Cascade", frozenset(parameters(CascadeSettings)))

FAMILY = Family(
    name="stable_cascade",
    title="Stable Cascade",
    hints="CascadeParameters",
    card=CascadeCard,
    settings=CascadeSettings,
    models={"cascade_tokenizer": "tokenizer"},
    encoders=("cascade_text_encoder", "cascade_decoder_text_encoder"),
    decoder="vqgan",
    variants=lambda _card: (_PLAIN,),
    staged=lambda _given: True,
    stages={"prior": "Stage C", "decoder": "Stage B"},
    samplers=samplers,
    mixed=mixed,
    called=called,
    always=tuple(name for name, one in parameters(CascadeSettings).items() if not one.delivery),
)
