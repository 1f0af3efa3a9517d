"""Random tiny Stable Cascades of the real classes, as many shapes of them as one likes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDPMWuerstchenScheduler,
    StableCascadeCombinedPipeline,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
)
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from transformers import CLIPTextModelWithProjection

from . import tiny_sdxl

BLOCKS = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
# What each seed stands for, beside what is drawn. Every level with attention costs the export seconds.
SHAPES: dict[int, dict[str, Any]] = {
    0: {
        "prior": {"switch": [False], "attention": [False, True]},
        "decoder": {"switch": None, "attention": [False, False, True], "patch": 2},
    },
    1: {
        "prior": {"switch": [True], "attention": [True, False]},
        "decoder": {"switch": None, "attention": [False, True], "patch": 1, "repeat": 2},
    },
    2: {
        "prior": {"switch": None, "attention": [True, True]},
        "decoder": {"switch": [True], "attention": [False, False], "patch": 2},
    },
    3: {
        "prior": {"switch": [False, True], "attention": [False, False, True]},
        "decoder": {"switch": [False], "attention": [False, True], "patch": 1, "up_layers": 2},
    },
}


def decoder_of(prior: Path) -> Path:
    """Where the decoder of a prior lies."""
    return prior.with_name(f"{prior.name}-decoder")


def make(folder: Path, seed: int) -> dict[str, Any]:
    """Save a random prior to `folder` and its decoder beside it; the same seed makes the same. Returns what was chosen."""
    facts = choose(seed)
    torch.manual_seed(seed)
    tokenizer = tiny_sdxl.tokenizer(facts["tokens"])
    width, layers = facts["clip"]
    text = CLIPTextModelWithProjection(tiny_sdxl.clip(width, layers, facts["tokens"], facts["projection"]))
    own = text
    if facts["own_text_encoder"]:
        width, layers = facts["decoder_clip"]
        own = CLIPTextModelWithProjection(tiny_sdxl.clip(width, layers, facts["tokens"], facts["projection"]))
    variant = {"variant": "bf16"} if facts["bf16"] else {}
    prior = StableCascadePriorPipeline(
        tokenizer, text, _prior(facts), _scheduler(facts, 0), resolution_multiple=facts["resolution_multiple"]
    )
    decoder = StableCascadeDecoderPipeline(
        _decoder(facts), tokenizer, own, _scheduler(facts, 1), _vqgan(facts), latent_dim_scale=facts["latent_dim_scale"]
    )
    for pipeline, place in ((prior, folder), (decoder, decoder_of(folder))):
        if facts["bf16"]:
            pipeline.to(torch.bfloat16)
        pipeline.save_pretrained(place, safe_serialization=True, **variant)
    index = decoder_of(folder) / "model_index.json"  # published folders name the module that the class has moved from
    index.write_text(json.dumps({**json.loads(index.read_text()), "vqgan": ["wuerstchen", "PaellaVQModel"]}))
    return facts


def choose(seed: int) -> dict[str, Any]:
    """What `make` makes of a seed."""
    choose = random.Random(seed)
    return {
        "tokens": [77, 24][seed % 2],
        "clip": (choose.choice([32, 48]), choose.choice([1, 2])),
        "decoder_clip": (choose.choice([32, 64]), 2),
        "own_text_encoder": seed % 2 == 1,
        "projection": choose.choice([24, 40]),
        "image_width": choose.choice([16, 24]),
        "conditioning": choose.choice([32, 48]),
        "prior_channels": choose.choice([4, 6]),
        "heads": choose.choice([2, 4]),
        "self_attention": choose.random() < 0.7,
        "clip_seq": [4, 2][seed % 2],
        "ratio_width": choose.choice([16, 32, 33]),
        "resolution_multiple": [42.67, 42.67, 24.0, 32.0][seed % 4],
        "latent_dim_scale": [10.67, 10.67, 6.0, 8.0][seed % 4],
        "scheduler": ({}, {"scaler": 2.0, "s": 0.01}, {"scaler": 0.7})[seed % 3],
        "bf16": seed % 4 == 2,
        "size": [168, 256, 96, 128][seed % 4],
        **SHAPES[seed % len(SHAPES)],
    }


def load(folder: Path) -> tuple[StableCascadePriorPipeline, StableCascadeDecoderPipeline]:
    """The two folders as diffusers runs them."""
    decoder = decoder_of(folder)
    how = {"dtype": torch.float32, "variant": "bf16" if list(folder.rglob("*.bf16.safetensors")) else None}
    prior = StableCascadePriorPipeline.from_pretrained(folder, **how)
    second = StableCascadeDecoderPipeline(  # diffusers no longer finds the VQGAN's class by itself
        decoder=StableCascadeUNet.from_pretrained(decoder / "decoder", **how),
        tokenizer=prior.tokenizer,
        text_encoder=CLIPTextModelWithProjection.from_pretrained(decoder / "text_encoder", **how),
        scheduler=DDPMWuerstchenScheduler.from_pretrained(decoder / "scheduler"),
        vqgan=PaellaVQModel.from_pretrained(decoder / "vqgan", **how),
        latent_dim_scale=json.loads((decoder / "model_index.json").read_text())["latent_dim_scale"],
    )
    pipelines = (prior, second)
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
    return pipelines


def combined(folder: Path) -> StableCascadeCombinedPipeline:
    """diffusers' one pipeline of both folders. It has no use for the decoder's text encoder."""
    prior, decoder = load(folder)
    parts = {f"prior_{name}": part for name, part in prior.components.items()}
    made = StableCascadeCombinedPipeline(**decoder.components, **parts)
    made.prior_pipe.register_to_config(resolution_multiple=prior.config.resolution_multiple)
    made.decoder_pipe.register_to_config(latent_dim_scale=decoder.config.latent_dim_scale)
    made.set_progress_bar_config(disable=True)
    return made


def _prior(facts: dict[str, Any]) -> StableCascadeUNet:
    return _unet(
        facts,
        facts["prior"],
        in_channels=facts["prior_channels"],
        out_channels=facts["prior_channels"],
        clip_text_in_channels=facts["clip"][0],
        clip_image_in_channels=facts["image_width"],
        timestep_conditioning_type=("sca", "crp"),
    )


def _decoder(facts: dict[str, Any]) -> StableCascadeUNet:
    return _unet(
        facts,
        facts["decoder"],
        in_channels=4,
        out_channels=4,
        effnet_in_channels=facts["prior_channels"],
        pixel_mapper_in_channels=3,
        timestep_conditioning_type=("sca",),
    )


def _unet(facts: dict[str, Any], shape: dict[str, Any], **more: Any) -> StableCascadeUNet:
    attention = shape["attention"]
    levels = len(attention)
    unet = StableCascadeUNet(
        timestep_ratio_embedding_dim=facts["ratio_width"],
        patch_size=shape.get("patch", 1),
        conditioning_dim=facts["conditioning"],
        block_out_channels=[32, 48, 64][:levels],
        num_attention_heads=[facts["heads"] if attends else -1 for attends in attention],
        down_num_layers_per_block=[1] * levels,
        up_num_layers_per_block=[1, shape.get("up_layers", 1), 1][:levels],
        down_blocks_repeat_mappers=[1] * levels,
        up_blocks_repeat_mappers=[shape.get("repeat", 1)] * levels,
        block_types_per_layer=[BLOCKS if attends else BLOCKS[:2] for attends in attention],
        clip_text_pooled_in_channels=facts["projection"],
        clip_seq=facts["clip_seq"],
        kernel_size=3,
        dropout=0.1,
        self_attn=facts["self_attention"],
        switch_level=shape["switch"],
        **more,
    )
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "gamma" in name or "beta" in name:  # zeros by default, where GlobalResponseNorm does nothing
                parameter.normal_(0, 0.3)
    return unet


def _vqgan(facts: dict[str, Any]) -> PaellaVQModel:
    vqgan = PaellaVQModel(
        bottleneck_blocks=1, embed_dim=32, num_vq_embeddings=16, scale_factor=0.3764 if facts["bf16"] else 0.5
    )
    with torch.no_grad():
        for name, parameter in vqgan.named_parameters():
            if "gammas" in name:  # zeros by default
                parameter.normal_(0, 0.5)
        vqgan.out_block[0].bias.fill_(0.5)  # grey, so that little is clamped
    return vqgan


def _scheduler(facts: dict[str, Any], stage: int) -> DDPMWuerstchenScheduler:
    return DDPMWuerstchenScheduler(**facts["scheduler"] if stage == 0 else {})
