"""Random LoRA files for the tiny SDXLs, in the two namings that people have."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file

# What kohya's trainer and the makers of distilled LoRAs train: linear layers, and convolutions as well.
LAYERS = re.compile(
    r"(to_[qkv]|to_out\.0|ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out|conv[12]|conv_shortcut|time_emb_proj)$"
    r"|((q|k|v|out)_proj|fc[12])$"
)
SIZE, ALPHA = 0.2, 2.0
KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def make(path: Path, pipeline: StableDiffusionXLPipeline, seed: int, *, kohya: bool, rank: int = 4) -> Path:
    """Write pairs for the UNet and both text encoders; in kohya's naming with `ALPHA`."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for part, prefix in KOHYA.items():
        for name, layer in getattr(pipeline, part).named_modules():
            if not LAYERS.search(name):
                continue
            out, *inner = layer.weight.shape
            down = torch.randn((rank, *inner), generator=generator) * SIZE
            up = torch.randn((out, rank, *[1] * (len(inner) - 1)), generator=generator) * SIZE
            whole = name if part == "unet" else f"text_model.{name.removeprefix('text_model.')}"
            if kohya:
                named = f"{prefix}_{whole.replace('.', '_')}"
                tensors |= {f"{named}.lora_down.weight": down, f"{named}.lora_up.weight": up}
                tensors[f"{named}.alpha"] = torch.tensor(ALPHA)
            else:
                tensors |= {f"{part}.{whole}.lora_A.weight": down, f"{part}.{whole}.lora_B.weight": up}
    save_file(tensors, path, {"format": "pt"})
    return path
