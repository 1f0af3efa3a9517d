"""Small models that tests share."""

from __future__ import annotations

from triptych_serving.manifest import ModelCard, TokenizerCard


def card(**changes) -> ModelCard:
    """A model card like the demo model's, with two samplers."""
    facts = {
        "name": "tiny",
        "latent_channels": 4,
        "vae_scale_factor": 8,
        "size_multiple": 32,
        "min_size": 32,
        "max_size": 256,
        "default_height": 128,
        "default_width": 128,
        "default_num_inference_steps": 20,
        "max_num_inference_steps": 100,
        "default_guidance_scale": 5.0,
        "default_sampler": "euler",
        "default_schedule": "default",
        "force_zeros_for_empty_prompt": True,
        "prediction_type": "epsilon",
        "tokenizers": tuple(
            TokenizerCard(f"{part}/tokenizer.json", 77, 1, "!") for part in ("tokenizer", "tokenizer_2")
        ),
        "samplers": {
            "dpmpp_2m": {"default": "samplers/dpmpp_2m-default.npz", "karras": "samplers/dpmpp_2m-karras.npz"},
            "euler": {"default": "samplers/euler-default.npz"},
        },
    }
    return ModelCard(**{**facts, **changes})
