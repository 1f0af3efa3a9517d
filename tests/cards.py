"""Cards of small models that tests share; no file is behind them."""

from __future__ import annotations

from triptych_contract.cards import TableCard, TokenizerCard
from triptych_contract.sdxl.card import LatentScale, RefinerCard, SamplerCard, SdxlCard
from triptych_contract.stable_cascade.card import CascadeCard

REFINER = RefinerCard(
    size_multiple=64, force_zeros_for_empty_prompt=False, requires_aesthetics_score=True, own_text_encoder=False
)


def table(max_steps: int = 100, *, inpaint: bool = True) -> TableCard:
    """The card of a table that no test opens."""
    return TableCard("samplers/none.npz.xz", max_steps, inpaint)


def card(**changes) -> SdxlCard:
    """A model card like the demo model's, with a few samplers."""
    facts = {
        "name": "tiny",
        "latent_channels": 4,
        "latent_scale": LatentScale(0.5, None, None),
        "vae_scale_factor": 8,
        "size_multiple": 32,
        "min_size": 32,
        "max_size": 256,
        "default_height": 128,
        "default_width": 128,
        "default_num_inference_steps": 20,
        "default_guidance_scale": 5.0,
        "guidance_embedding_dim": None,
        "max_clip_skip": 2,
        "num_train_timesteps": 1000,
        "default_sampler": "euler",
        "default_schedule": "default",
        "force_zeros_for_empty_prompt": True,
        "prediction_type": "epsilon",
        "refiner": None,
        "merged": (),
        "adapter_rank": 0,
        "controls": (),
        "control_bytes": 0,
        "previews": {},
        "tokenizers": tuple(
            TokenizerCard(f"{part}/tokenizer.json", 77, 1, "!") for part in ("tokenizer", "tokenizer_2")
        ),
        "samplers": {
            "dpmpp_2m": SamplerCard("DPMSolverMultistepScheduler", "DPM++ 2M", {"default": table(), "karras": table()}),
            "euler": SamplerCard("EulerDiscreteScheduler", "Euler", {"default": table()}),
            "lcm": SamplerCard("LCMScheduler", "LCM", {"default": table(max_steps=50)}),
            "unipc": SamplerCard("UniPCMultistepScheduler", "UniPC", {"default": table(inpaint=False)}),
        },
    }
    return SdxlCard(**{**facts, **changes})


def cascade_card(**changes) -> CascadeCard:
    """A card like the demo Stable Cascade's."""
    facts = {
        "name": "tiny",
        "latent_channels": 4,
        "min_size": 40,
        "max_size": 256,
        "default_height": 128,
        "default_width": 128,
        "default_num_inference_steps": 10,
        "tokenizers": (TokenizerCard("tokenizer/tokenizer.json", 77, 1, "!"),),
        "previews": {},
        "prior_channels": 16,
        "resolution_multiple": 42.67,
        "latent_dim_scale": 10.67,
        "vqgan_scale_factor": 4,
        "prior_multiple": 1,
        "latent_multiple": 2,
        "default_prior_num_inference_steps": 20,
        "default_prior_guidance_scale": 4.0,
        "default_decoder_guidance_scale": 0.0,
        "own_text_encoder": False,
        "prior_table": table(),
        "decoder_table": table(50),
    }
    return CascadeCard(**{**facts, **changes})
