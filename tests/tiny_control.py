"""Random tiny ControlNets beside the random tiny SDXLs, in layouts of their own."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, UNet2DConditionModel

MODES = 3  # of a union


def make(folder: Path, weights: Path, seed: int, kind: str) -> Path:
    """Save a random ControlNet for an SDXL's folder; its last convolutions, zeros before a training, add something.

    Args:
        kind: "full"; "small", without attention, which reads pictures as blue, green, red; or "union".
    """
    small = kind == "small"
    torch.manual_seed(seed)
    unet = UNet2DConditionModel.load_config(weights, subfolder="unet")
    vae = UNet2DConditionModel.load_config(weights, subfolder="vae")
    shared = (
        "block_out_channels",
        "cross_attention_dim",
        "addition_embed_type",
        "addition_time_embed_dim",
        "projection_class_embeddings_input_dim",
        "norm_num_groups",
        "attention_head_dim",
    )
    blocks = len(unet["block_out_channels"])
    halvings = len(vae["block_out_channels"]) - 1
    width = unet["block_out_channels"][0]
    others = {
        "full": {},
        "small": {"mid_block_type": "UNetMidBlock2D", "controlnet_conditioning_channel_order": "bgr"},
        "union": {
            "num_control_type": MODES,
            "num_trans_channel": width,
            "num_proj_channel": width,
            "num_trans_layer": 2,
        },
    }
    made = (ControlNetUnionModel if kind == "union" else ControlNetModel)(
        **{name: unet[name] for name in shared},
        in_channels=unet["out_channels"],
        layers_per_block=unet["layers_per_block"],
        down_block_types=["DownBlock2D"] * blocks if small else unet["down_block_types"],
        transformer_layers_per_block=1,
        use_linear_projection=not small,
        conditioning_embedding_out_channels=(8, 8, 16, 16)[: halvings + 1],
        **others[kind],
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "controlnet_" in name or "spatial_ch_projs" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
    made.save_pretrained(folder)
    return folder
