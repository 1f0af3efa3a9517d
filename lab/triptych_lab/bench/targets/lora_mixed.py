"""Compare with diffusers' pipeline where each of eight users has an adapter (LoRA) of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from triptych_serving.manifest import Manifest

from ..load import draw_all
from ..peers import diffusers
from ..peers.weights import check_same, exported, weights_of
from ..requests import USERS, varied
from ..serving import started
from ..target import Setting, Sides, Target, at_least

NAME = "lora_mixed"
RANK = 16
SCALE = 0.8


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Measure pictures per second, 8 users with 8 adapters: ours; diffusers, one by one, with `set_adapters` each time."""
    weights = weights_of(setting)
    options = f"--adapters={RANK}", "--sampler=euler"
    build = exported(weights, setting.output / "peers", "adapters", *options)
    folder = build.with_name(f"{build.name}-loras")
    _make_adapters(Manifest.load(build), folder)
    requests: list[dict[str, Any]] = [
        {**one, "lora": json.dumps([{"name": f"user-{k % USERS}", "scale": SCALE}])}
        for k, one in enumerate(varied(setting.count(USERS)))
    ]
    with diffusers(weights, folder) as other, started([build], adapters=folder) as served:
        check_same(other, served.url, lora=requests[0]["lora"])
        yield Sides(
            lambda: {NAME: len(requests) / draw_all(served.url, requests, USERS)},
            lambda: {NAME: len(requests) / other.draw(requests)},
        )


def _make_adapters(manifest: Manifest, folder: Path) -> None:
    """Write a random adapter of the UNet for each user, as PEFT names its tensors."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    layers = manifest.stages["unet_adapters"]["layers"]
    for user in range(USERS):
        random, tensors = np.random.default_rng(user), {}
        for layer, (width_in, width_out) in layers.items():
            down, up = random.standard_normal((RANK, width_in)), random.standard_normal((width_out, RANK))
            tensors[f"unet.{layer}.lora_A.weight"] = (down / np.sqrt(width_in)).astype(np.float32)
            tensors[f"unet.{layer}.lora_B.weight"] = (0.1 * up / np.sqrt(RANK)).astype(np.float32)
        save_file(tensors, folder / f"user-{user}.safetensors")


TARGET = Target(
    NAME,
    "pictures per second, 8 users with 8 adapters, different steps and guidance: ours ÷ diffusers' pipeline on the same weights "
    "and threads, serving them one by one with `set_adapters`",
    {NAME: at_least(3.0)},
    sides,
    needs_weights=True,
)
