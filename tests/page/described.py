"""What a server would describe: the demo SDXL's own card, one with a refiner, and a small Stable Cascade."""

from __future__ import annotations

import json
from typing import Any

from triptych_demo import demo_build
from triptych_page.forms import Form, forms_of

CASCADE: dict[str, Any] = {
    "name": "cascade-small",
    "latent_channels": 4,
    "tokenizers": [],
    "previews": {},
    "own_text_encoder": False,
    "min_size": 128,
    "max_size": 512,
    "default_height": 256,
    "default_width": 256,
    "default_num_inference_steps": 10,
    "prior_channels": 16,
    "resolution_multiple": 42.67,
    "latent_dim_scale": 10.67,
    "vqgan_scale_factor": 4,
    "prior_multiple": 1,
    "latent_multiple": 4,
    "default_prior_num_inference_steps": 20,
    "default_prior_guidance_scale": 4.0,
    "default_decoder_guidance_scale": 0.0,
    "prior_table": {"path": "", "max_steps": 60, "inpaint": False},
    "decoder_table": {"path": "", "max_steps": 40, "inpaint": False},
}


def sdxl_card() -> dict[str, Any]:
    """The demo model's card, fresh."""
    manifest: dict[str, Any] = json.loads((demo_build() / "manifest.json").read_text("utf-8"))
    return dict(manifest["model"])


def described(*, refiner: bool = False, cascade: bool = False) -> dict[str, Any]:
    """What `AsyncClient.models` gives of such a server."""
    card = sdxl_card()
    if refiner:
        zeros = {"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True}
        card["refiner"] = {"size_multiple": 64, "own_text_encoder": True, **zeros}
    models = {"sdxl": {"family": "sdxl", "model": card}}
    return models | ({"stable_cascade": {"family": "stable_cascade", "model": CASCADE}} if cascade else {})


def all_forms() -> dict[str, Form]:
    """SDXL, SDXL with its refiner, Stable Cascade."""
    return forms_of(described(refiner=True, cascade=True))
