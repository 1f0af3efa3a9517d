"""A random ControlNet for weights in diffusers layout: `python -m triptych_export.peers.control WEIGHTS FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import diffusers
import torch

_diffusers: Any = diffusers


def make(weights: Path, folder: Path) -> None:
    """Write a ControlNet with the blocks of the UNet's own way down; what it adds is small, and not nothing."""
    torch.manual_seed(0)
    unet = _diffusers.UNet2DConditionModel.from_pretrained(weights, subfolder="unet")
    halvings = len(_diffusers.AutoencoderKL.load_config(weights, subfolder="vae")["block_out_channels"]) - 1
    widths = (16, 32, 96, 256, 256)[: halvings + 1]
    made = _diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "controlnet_" in name:  # zeros before a training
                parameter.copy_(0.02 * torch.randn_like(parameter))
    made.save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
