"""Random tiny SDXL folders of the real classes, as many shapes of them as one likes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerFast

from triptych_demo import demo_build

VOCABULARY = 2000


def make(folder: Path, seed: int, *, inpainting: bool = False) -> dict[str, Any]:
    """Save a random SDXL to `folder`; the same seed makes the same one. Returns what was chosen."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    blocks = [3, 2, 2][seed % 3]
    facts: dict[str, Any] = {
        "blocks": blocks,
        "widths": [choose.choice([32, 64]) * (k + 1) for k in range(blocks)],
        "layers_per_block": 2 if seed == 1 else 1,
        "transformer_layers": [choose.choice([1, 2]) if blocks == 2 else 1 for _ in range(blocks)],
        "heads": choose.choice([8, [choose.choice([2, 4]) for _ in range(blocks)]]),
        "linear_projection": choose.random() < 0.5,
        "clip": (choose.choice([32, 64]), choose.choice([1, 2, 3])),
        "clip_2": (choose.choice([32, 48, 96]), choose.choice([2, 3])),
        "projection": choose.choice([24, 40]),
        "tokens": choose.choice([24, 77]),
        "vae_levels": choose.choice([3, 4]),
        "scaling_factor": choose.choice([0.13025, 0.18215, 0.8]),
        "prediction_type": ["epsilon", "v_prediction"][seed % 2],
        "force_zeros_for_empty_prompt": seed % 3 != 0,
        "distilled": {3: "lcm", 5: "turbo"}.get(seed),
    }
    pipeline = StableDiffusionXLInpaintPipeline if inpainting else StableDiffusionXLPipeline
    pipeline(
        vae=_vae(facts),
        text_encoder=CLIPTextModel(clip(*facts["clip"], facts["tokens"], facts["clip"][0])),
        text_encoder_2=CLIPTextModelWithProjection(clip(*facts["clip_2"], facts["tokens"], facts["projection"])),
        tokenizer=tokenizer(facts["tokens"]),
        tokenizer_2=tokenizer(facts["tokens"]),
        unet=_unet(facts, facts["clip"][0] + facts["clip_2"][0], time_ids=6, in_channels=9 if inpainting else 4),
        scheduler=_scheduler(facts),
        force_zeros_for_empty_prompt=facts["force_zeros_for_empty_prompt"],
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return facts


def make_refiner(folder: Path, base: Path, facts: dict[str, Any], *, own_encoder: bool, aesthetics: bool) -> None:
    """Save a random refiner for the base that `make` saved with these facts."""
    torch.manual_seed(99)
    pipeline = load(base)
    encoder = pipeline.text_encoder_2
    if own_encoder:
        encoder = CLIPTextModelWithProjection(clip(*facts["clip_2"], facts["tokens"], facts["projection"]))
    StableDiffusionXLImg2ImgPipeline(
        vae=pipeline.vae,
        text_encoder=None,
        text_encoder_2=encoder,
        tokenizer=None,
        tokenizer_2=pipeline.tokenizer_2,
        unet=_unet(facts, facts["clip_2"][0], time_ids=5 if aesthetics else 6),
        scheduler=pipeline.scheduler,
        requires_aesthetics_score=aesthetics,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)


def load(folder: Path) -> StableDiffusionXLPipeline:
    """The folder as diffusers runs it."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def clip(width: int, layers: int, tokens: int, projection: int) -> CLIPTextConfig:
    """A small text encoder's config."""
    return CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,  # TensorRT-RTX 1.7 cannot compile heads whose size is no multiple of 8
        max_position_embeddings=tokens,
        projection_dim=projection,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _unet(facts: dict[str, Any], context: int, time_ids: int, in_channels: int = 4) -> UNet2DConditionModel:
    blocks = facts["blocks"]
    down = ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * (blocks - 1)
    return UNet2DConditionModel(
        sample_size=8 if facts["vae_levels"] == 4 else 16,
        in_channels=in_channels,
        block_out_channels=facts["widths"],
        layers_per_block=facts["layers_per_block"],
        down_block_types=down,
        up_block_types=[name.replace("Down", "Up") for name in reversed(down)],
        transformer_layers_per_block=facts["transformer_layers"],
        attention_head_dim=facts["heads"],
        use_linear_projection=facts["linear_projection"],
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=facts["projection"] + time_ids * 16,
        cross_attention_dim=context,
        time_cond_proj_dim=32 if facts["distilled"] == "lcm" and time_ids == 6 else None,
        norm_num_groups=8,
    )


def _vae(facts: dict[str, Any]) -> AutoencoderKL:
    levels = facts["vae_levels"]
    return AutoencoderKL(
        block_out_channels=[16, 16, 32, 32][:levels],
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=facts["scaling_factor"],
        force_upcast=False,
    )


def _scheduler(facts: dict[str, Any]) -> Any:
    common = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    common["prediction_type"] = facts["prediction_type"]
    if facts["distilled"] == "lcm":
        return LCMScheduler(**common)
    if facts["distilled"] == "turbo":
        return EulerAncestralDiscreteScheduler(**common, timestep_spacing="trailing")
    return EulerDiscreteScheduler(**common, steps_offset=1, timestep_spacing="leading")


def tokenizer(tokens: int) -> PreTrainedTokenizerFast:
    """The demo model's vocabulary, for prompts of this length."""
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_file=str(demo_build() / "tokenizer/tokenizer.json"),
        bos_token="<|startoftext|>",
        eos_token=end,
        unk_token=end,
        pad_token=end,
        model_max_length=tokens,
    )
