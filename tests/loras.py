"""Random LoRAs in the namings that people's files have, and safetensors files by hand, good ones and bad ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from triptych_serving.manifest import Manifest

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
DTYPES = {np.dtype("<f4"): "F32", np.dtype("<f2"): "F16", np.dtype("<f8"): "F64", np.dtype("<u2"): "BF16"}


def pack(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """Write a safetensors file; arrays of 16-bit whole numbers are taken for bfloat16."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": DTYPES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at := at + array.nbytes],
        }
    return framed(json.dumps(header).encode()) + b"".join(array.tobytes() for array in tensors.values())


def framed(header: bytes) -> bytes:
    """A header behind its length."""
    return struct.pack("<Q", len(header)) + header


def layers_of(build: Path) -> dict[str, dict[str, list[int]]]:
    """The layers of a build that adapters change: (in, out) by layer by stage."""
    stages = Manifest.load(build).stages
    return {stage: dict(stages[f"{stage}_adapters"]["layers"]) for stage in KOHYA}


def tensors(
    layers: Mapping[str, Mapping[str, Iterable[int]]],
    seed: int = 0,
    *,
    naming: str = "kohya",
    ranks: Iterable[int] = (4,),
    alpha: float | None = 2.0,
    convolutions: bool = False,
    stages: Iterable[str] = ("unet",),
    strength: float = 0.3,
    dtype: Any = np.float32,
) -> dict[str, np.ndarray]:
    """A random LoRA of all layers of some stages.

    Args:
        naming: kohya, sgm (kohya's of SDXL's own code), peft or diffusers.
        ranks: in turn, layer by layer.
        alpha: of kohya's; None for none.
        convolutions: whether the UNet's `proj_in` and `proj_out` are convolutions.
    """
    random, made = np.random.default_rng(seed), {}
    ranks = list(ranks)
    for stage in stages:
        for number, (layer, (width_in, width_out)) in enumerate(layers[stage].items()):
            rank = ranks[number % len(ranks)]
            more = (1, 1) if convolutions and layer.endswith((".proj_in", ".proj_out")) else ()
            down = random.standard_normal((rank, width_in)) / np.sqrt(width_in)
            up = random.standard_normal((width_out, rank)) * strength / np.sqrt(rank)
            names = dict(zip(("down", "up"), _named(naming, stage, layer), strict=True))
            for half, values in (("down", down), ("up", up)):
                made[names[half]] = values.astype(dtype).reshape(*values.shape, *more)
            if alpha is not None and naming in ("kohya", "sgm"):
                made[names["down"].replace("lora_down.weight", "alpha")] = np.array(alpha, dtype)
    return made


def _named(naming: str, stage: str, layer: str) -> tuple[str, str]:
    text = "" if stage == "unet" else "text_model."
    if naming in ("kohya", "sgm"):
        path = (_sgm(layer) if naming == "sgm" and stage == "unet" else f"{text}{layer}").replace(".", "_")
        return f"{KOHYA[stage]}{path}.lora_down.weight", f"{KOHYA[stage]}{path}.lora_up.weight"
    path = f"{stage}.{text}{layer}"
    if naming == "peft":
        return f"{path}.lora_A.weight", f"{path}.lora_B.weight"
    ending = "lora" if stage == "unet" else "lora_linear_layer"
    return f"{path}.{ending}.down.weight", f"{path}.{ending}.up.weight"


def _sgm(layer: str, each: int = 2) -> str:
    """A layer as SDXL's own code calls it; `each` block has so many layers, with the one that changes the size."""
    kind, block, *rest = layer.split(".")
    if kind == "mid_block":
        return f"middle_block.1.{'.'.join(rest[1:])}"
    blocks, first = ("input_blocks", 1) if kind == "down_blocks" else ("output_blocks", 0)
    return f"{blocks}.{int(block) * each + int(rest[1]) + first}.1.{'.'.join(rest[2:])}"
