"""Export a full-size model with random weights in half precision; prints seconds and peak memory. By hand: needs an hour and
20 GB of disk for SDXL, 30 GB with its refiner, 26 GB for Stable Cascade; engines as much again.

python -m tests.export.full_size sdxl|sdxl_refined|stable_cascade FOLDER TOKENIZER [--engines sm89] [--adapters 64] [--stage NAME]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKL,
    DDPMWuerstchenScheduler,
    EulerDiscreteScheduler,
    StableCascadeUNet,
    UNet2DConditionModel,
)
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from triptych_export.build import FAMILIES as FAMILIES_EXPORT
from triptych_export.build import ExportOptions, export
from triptych_export.parts import Workshop
from triptych_export.tensorrt.engines import engines_of
from triptych_export.weights import read_index
from triptych_serving.tensorrt.library import TARGETS

UNET = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
REFINER = {
    **UNET,
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
BLOCKS = ["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"]
STAGE_C = {
    "block_out_channels": [2048, 2048],
    "block_types_per_layer": [BLOCKS] * 2,
    "clip_image_in_channels": 768,
    "clip_text_in_channels": 1280,
    "conditioning_dim": 2048,
    "down_blocks_repeat_mappers": [1, 1],
    "down_num_layers_per_block": [8, 24],
    "in_channels": 16,
    "num_attention_heads": [32, 32],
    "out_channels": 16,
    "switch_level": [False],
    "timestep_conditioning_type": ["sca", "crp"],
    "up_blocks_repeat_mappers": [1, 1],
    "up_num_layers_per_block": [24, 8],
}
STAGE_B = {
    "block_out_channels": [320, 640, 1280, 1280],
    "block_types_per_layer": [BLOCKS[:2], BLOCKS[:2], BLOCKS, BLOCKS],
    "conditioning_dim": 1280,
    "down_blocks_repeat_mappers": [1, 1, 1, 1],
    "down_num_layers_per_block": [2, 6, 28, 6],
    "dropout": 0.1,
    "effnet_in_channels": 16,
    "in_channels": 4,
    "num_attention_heads": [-1, -1, 20, 20],
    "out_channels": 4,
    "patch_size": 2,
    "pixel_mapper_in_channels": 3,
    "timestep_conditioning_type": ["sca"],
    "up_blocks_repeat_mappers": [3, 3, 2, 2],
    "up_num_layers_per_block": [6, 28, 6, 2],
}

Parts = dict[str, tuple[str, Callable[[], torch.nn.Module]]]


def clip_g() -> torch.nn.Module:
    return CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, projection_dim=1280))


def make_sdxl(folder: Path, tokenizer: Path) -> tuple[Path, ExportOptions]:
    """SDXL base in fp16; its folder and how to export it."""
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    parts: Parts = {
        "text_encoder": ("transformers", lambda: CLIPTextModel(CLIPTextConfig(**CLIP_L, projection_dim=768))),
        "text_encoder_2": ("transformers", clip_g),
        "unet": ("diffusers", lambda: UNet2DConditionModel(**UNET)),
        "vae": ("diffusers", lambda: AutoencoderKL(**VAE)),
    }
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    make(folder / "weights", index, parts, scheduler, dict.fromkeys(("tokenizer", "tokenizer_2"), tokenizer))
    return folder / "weights", ExportOptions(samplers=["euler:default"])


def make_refined(folder: Path, tokenizer: Path) -> tuple[Path, ExportOptions]:
    """The same with its refiner, whose second encoder and VAE are the base's."""
    weights, options = make_sdxl(folder, tokenizer)
    refiner, index = folder / "refiner", json.loads((weights / "model_index.json").read_text())
    own = {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}
    shared = {name: index[name] for name in ("text_encoder_2", "vae")}
    index = {**own, **shared, "force_zeros_for_empty_prompt": False}
    scheduler = EulerDiscreteScheduler.from_pretrained(weights / "scheduler")
    make(
        refiner,
        index,
        {"unet": ("diffusers", lambda: UNet2DConditionModel(**REFINER))},
        scheduler,
        {"tokenizer_2": tokenizer},
    )
    for name in shared:
        if not (refiner / name).exists():
            shutil.copytree(weights / name, refiner / name, copy_function=os.link)
    return weights, replace(options, refiner=refiner)


def make_cascade(folder: Path, tokenizer: Path) -> tuple[Path, ExportOptions]:
    """Stable Cascade in bf16, as it is published: named by variant, and in shards."""
    prior, decoder, how = folder / "prior", folder / "decoder", {"dtype": torch.bfloat16, "variant": "bf16"}
    stage_c: Parts = {
        "text_encoder": ("transformers", clip_g),
        "prior": ("diffusers", lambda: StableCascadeUNet(**STAGE_C)),
    }
    stage_b: Parts = {
        "decoder": ("diffusers", lambda: StableCascadeUNet(**STAGE_B)),
        "vqgan": ("wuerstchen", PaellaVQModel),
    }
    scheduler, tokenizers = DDPMWuerstchenScheduler(), {"tokenizer": tokenizer}
    make(prior, {"_class_name": "StableCascadePriorPipeline"}, stage_c, scheduler, tokenizers, **how)
    index = {
        "_class_name": "StableCascadeDecoderPipeline",
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    }
    make(decoder, index, stage_b, scheduler, tokenizers, **how)
    if not (decoder / "text_encoder").exists():
        shutil.copytree(prior / "text_encoder", decoder / "text_encoder", copy_function=os.link)
    return prior, ExportOptions(decoder=decoder)


def make(
    folder: Path,
    index: dict[str, Any],
    parts: Parts,
    scheduler: Any,
    tokenizers: dict[str, Path],
    dtype: torch.dtype = torch.float16,
    variant: str | None = None,
) -> None:
    """A folder in diffusers layout, one component in memory at a time; nothing where it is there already."""
    if (folder / "model_index.json").exists():
        return
    for name, (library, build) in parts.items():
        with init_empty_weights():
            module = build()
        index[name] = [library, type(module).__name__]
        module = module.to(dtype).to_empty(device="cpu")
        fill(module)
        module.save_pretrained(folder / name, safe_serialization=True, variant=variant, max_shard_size="4GB")
        del module
    scheduler.save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    for name, tokenizer in tokenizers.items():
        shutil.copytree(tokenizer, folder / name, dirs_exist_ok=True)
        config = folder / name / "tokenizer_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 77}))
        index[name] = ["transformers", "TokenizersBackend"]
    (folder / "model_index.json").write_text(json.dumps(index))


def fill(module: torch.nn.Module) -> None:
    """Random weights that keep the size of what goes through them: a million numbers, over and over."""
    noise = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                # Each of Cascade's timestep blocks multiplies by one plus what its mappers make: fifty of them overflow.
                scale = 0.02 if "blocks" in name and ".mapper" in name else 1.0
                some = (noise * scale * parameter[0].numel() ** -0.5).to(parameter.dtype)
                for part in parameter.data.view(-1).split(len(some)):
                    part.copy_(some[: len(part)])
            else:
                parameter.fill_(float("norm" in name and name.endswith("weight")))
    for name, buffer in module.named_buffers():
        if buffer.ndim and buffer.dtype == torch.int64:
            buffer.copy_(torch.arange(buffer.numel()).reshape(buffer.shape))
        else:  # of a batch norm
            buffer.fill_(float("var" in name))


FAMILIES = {"sdxl": make_sdxl, "sdxl_refined": make_refined, "stable_cascade": make_cascade}


def one_stage(
    weights: Path, build: Path, options: ExportOptions, name: str, report: Callable[[str, float], None]
) -> None:
    """One stage as the export makes it, and its engines."""
    family = FAMILIES_EXPORT[read_index(weights)["_class_name"]](weights, options)
    workshop, tokens = Workshop(build), 77
    report(name, 0.0)
    facts = workshop.stage(name, family.stages(tokens)[name])
    report(f"max difference {facts['max_difference']:.1e}, batch invariant {facts['batch_invariant']}", 1.0)
    if options.target in TARGETS:
        tokenizers = tuple(workshop.tokenizer(folder, part) for part, folder in family.tokenizers.items())
        engines, card = engines_of(options, build), family.card(tokenizers, {}, {})
        made = workshop.ledger.part(
            f"engines of {name}",
            facts["sha256"],
            lambda: engines.make(engines.wanted(name, facts, card), lambda phase, share: report(phase, share)),
        )
        sys.stdout.write(json.dumps(made["engines"], indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--engines", help="build TensorRT-RTX engines for this compute capability too, like sm89")
    parser.add_argument("--adapters", type=int, help="graphs with inputs for LoRAs of so many ranks too")
    parser.add_argument("--stage", help="only this one, as unet_adapters, without its build")
    given = parser.parse_args()
    weights, options = FAMILIES[given.family](given.folder, given.tokenizer)
    if given.engines:
        target = {"target": "tensorrt-rtx", "compute_capabilities": [given.engines]}
        options = replace(options, **target, engine_store=given.folder / "store")
    options = replace(options, adapters=given.adapters)
    started = time.monotonic()

    def report(what: str, share: float) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        sys.stdout.write(f"{time.monotonic() - started:7.0f} s  peak {peak:5.1f} GB  {share:4.0%} {what}\n")
        sys.stdout.flush()

    if given.stage:
        one_stage(weights, given.folder / "build", options, given.stage, report)
        return
    manifest = export(weights, given.folder / "build", options, report)
    for name, stage in manifest.stages.items():
        size = sum(manifest.artifacts[file]["bytes"] for file in stage["files"] if not file.endswith(".plan"))
        sys.stdout.write(f"{name}: {size / 1e9:.2f} GB, max difference {stage['max_difference']:.1e}\n")
        for engine in stage.get("engines", {}).values():
            plan = manifest.artifacts[engine["path"]]["bytes"] / 1e9
            peak = engine["peak_bytes"] / 1e9
            sys.stdout.write(f"{engine['path']}: {plan:.2f} GB, {engine['seconds']:.0f} s, peak {peak:.1f} GB\n")


if __name__ == "__main__":
    main()
