"""Encodes the whole bank once, so that training steps need no encoder, and reads it back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demo_models import augment
from demo_models.report import say
from demo_models.training import fast

Encode = Callable[[Tensor], Tensor]


def write(work: Path, name: str, encode: Encode, device: str, *, batch: int = 64) -> None:
    """Write `NAME.npy` (float16 [10·N, C, H, W]): `encode` of every version, given as [B, 3, 128, 128] in 0–1.

    A file that is there is kept: delete it to make it anew.
    """
    if (work / f"{name}.npy").exists():
        return
    _, bank = augment.load(work)
    made = []
    for start in range(0, len(bank), batch):
        images = torch.tensor(bank[start : start + batch], device=device).permute(0, 3, 1, 2).float().div(255)
        with torch.no_grad(), fast(device):
            made.append(encode(images.contiguous(memory_format=torch.channels_last)).float().cpu().numpy())
    latents = np.concatenate(made)
    say(f"{name}: {latents.shape}, mean {latents.mean():.3f}, deviation {latents.std():.3f}")
    part = work / f"{name}.part.npy"
    np.save(part, latents.astype(np.float16))
    part.rename(work / f"{name}.npy")


def load(work: Path, name: str, device: str) -> Tensor:
    """What `write` wrote, float16 on the device."""
    return torch.from_numpy(np.load(work / f"{name}.npy")).to(device)
