"""Random IP-Adapters of the real layouts, and an image encoder, for tiny SDXLs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

WIDTH, PROJECTION, INNER, SIDE = 48, 40, 64, 32
TOKENS = {"plain": 4, "plus": 8}


def make_encoder(folder: Path) -> None:
    """Save a small CLIP image encoder."""
    torch.manual_seed(7)
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=8,
        projection_dim=PROJECTION,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)


def folder_of(weights: Path) -> Path:
    """Where a base's adapters and their encoder lie."""
    return weights.with_name(f"{weights.name}-ip-adapters")


def make_all(weights: Path) -> dict[str, Any]:
    """Make an encoder, and an adapter of each kind, for the SDXL in `weights`; the options of an export with them."""
    folder, unet = folder_of(weights), UNet2DConditionModel.from_pretrained(weights / "unet")
    make_encoder(folder / "image_encoder")
    for seed, kind in enumerate(TOKENS):
        make(folder / f"{kind}.safetensors", unet, kind, seed)
    files = [f"{kind}={folder / kind}.safetensors" for kind in TOKENS]
    return {"ip_adapter": files, "image_encoder": folder / "image_encoder"}


def make(file: Path, unet: Any, kind: str, seed: int) -> None:
    """Save a random adapter of a kind of TOKENS for diffusers' UNet."""
    random, width = torch.Generator().manual_seed(seed), unet.config.cross_attention_dim
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    crossing = [unet.get_submodule(name).to_q.out_features for name in names if not name.endswith("attn1")]
    shapes = {
        f"ip_adapter.{2 * k + 1}.to_{part}_ip.weight": (out, width) for k, out in enumerate(crossing) for part in "kv"
    }
    shapes |= {f"image_proj.{name}": shape for name, shape in _projection(kind, width).items()}
    tensors = {name: torch.randn(shape, generator=random) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    save_file(tensors, file)


def _projection(kind: str, width: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a projection's tensors, by the names that published files have."""
    if kind == "plain":
        out = TOKENS[kind] * width
        return {"proj.weight": (out, PROJECTION), "proj.bias": (out,), "norm.weight": (width,), "norm.bias": (width,)}
    shapes: dict[str, tuple[int, ...]] = {"latents": (1, TOKENS[kind], INNER)}
    for name, size in (("proj_in", (INNER, WIDTH)), ("proj_out", (width, INNER))):
        shapes |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    shapes |= {"norm_out.weight": (width,), "norm_out.bias": (width,)}
    for layer in range(4):
        attention, forward = f"layers.{layer}.0", f"layers.{layer}.1"
        for norm in ("norm1", "norm2"):
            shapes |= {f"{attention}.{norm}.{part}": (INNER,) for part in ("weight", "bias")}
        shapes |= {f"{attention}.to_q.weight": (64, INNER), f"{attention}.to_kv.weight": (128, INNER)}
        shapes |= {
            f"{attention}.to_out.weight": (INNER, 64),
            f"{forward}.0.weight": (INNER,),
            f"{forward}.0.bias": (INNER,),
        }
        shapes |= {f"{forward}.1.weight": (4 * INNER, INNER), f"{forward}.3.weight": (INNER, 4 * INNER)}
    return shapes
