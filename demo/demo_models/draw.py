"""Draws pictures with the diffusers folders as the demo does: the weights as stored (float16), the arithmetic in float32."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demo_models import sdxl
from demo_models.data import SIZE, Pixels
from demo_models.libraries import (
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from demo_models.sheets import to_pixels

SWITCH = 0.8  # The share of the steps that the base takes before the refiner.
_BATCH = 10
Painter = Callable[[list[str], list[torch.Generator]], Tensor]  # → [B, 3, 128, 128] in 0–1


def _quiet(pipe: Any, device: str) -> Any:
    """The pipeline on the device, without its bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def sdxl_painter(folder: Path, device: str, *, steps: int, guidance: float) -> Painter:
    """The base alone."""
    pipe = sdxl.load(folder).to(device)

    def paint(prompts: list[str], generators: list[torch.Generator]) -> Tensor:
        sizes = {"height": SIZE, "width": SIZE, "num_inference_steps": steps, "guidance_scale": guidance}
        made: Tensor = pipe(prompts, generator=generators, output_type="pt", **sizes).images
        return made

    return paint


def refined_painter(base: Path, refiner: Path, device: str, *, steps: int, guidance: float) -> Painter:
    """The base for four fifths of the steps, then the refiner."""
    first = sdxl.load(base).to(device)
    loaded = StableDiffusionXLImg2ImgPipeline.from_pretrained(refiner, torch_dtype=torch.float32, add_watermarker=False)
    second = _quiet(loaded, device)
    common = {"num_inference_steps": steps, "guidance_scale": guidance}

    def paint(prompts: list[str], generators: list[torch.Generator]) -> Tensor:
        sizes = {"height": SIZE, "width": SIZE, "denoising_end": SWITCH, "output_type": "latent"}
        handed = first(prompts, generator=generators, **sizes, **common).images
        made: Tensor = second(
            prompts, image=handed, generator=generators, denoising_start=SWITCH, output_type="pt", **common
        ).images
        return made

    return paint


def cascade_painter(prior: Path, decoder: Path, device: str, *, steps: int, guidance: float) -> Painter:
    """The prior, then the decoder in ten steps without guidance."""
    first = _quiet(StableCascadePriorPipeline.from_pretrained(prior, torch_dtype=torch.float32), device)
    second = _quiet(StableCascadeDecoderPipeline.from_pretrained(decoder, torch_dtype=torch.float32), device)

    def paint(prompts: list[str], generators: list[torch.Generator]) -> Tensor:
        common = {"generator": generators, "output_type": "pt"}
        sizes = {"height": SIZE, "width": SIZE, "num_inference_steps": steps, "guidance_scale": guidance}
        code = first(prompts, **sizes, **common).image_embeddings
        made: Tensor = second(code, prompts, num_inference_steps=10, guidance_scale=0.0, **common).images
        return made

    return paint


def machine(parser: argparse.ArgumentParser) -> None:
    """The options that say where to compute."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)


def subcommands(kinds: Any) -> list[argparse.ArgumentParser]:
    """Add `sdxl`, `refined` and `cascade`, each with its folders, to a command line."""
    made = []
    for kind, folders in {"sdxl": ("base",), "refined": ("base", "refiner"), "cascade": ("prior", "decoder")}.items():
        sub: argparse.ArgumentParser = kinds.add_parser(kind, help=f"draw with {' and '.join(folders)}")
        for folder in folders:
            sub.add_argument(folder, type=Path)
        sub.add_argument("--steps", type=int, default=20, help="of the base, or of the prior")
        sub.add_argument("--guidance", type=float, default=4.0)
        machine(sub)
        made.append(sub)
    return made


def painter(args: argparse.Namespace) -> Painter:
    """The painter that the command line names."""
    settings = {"steps": args.steps, "guidance": args.guidance}
    if args.kind == "sdxl":
        return sdxl_painter(args.base, args.device, **settings)
    if args.kind == "refined":
        return refined_painter(args.base, args.refiner, args.device, **settings)
    return cascade_painter(args.prior, args.decoder, args.device, **settings)


@torch.no_grad()
def draw(paint: Painter, prompts: list[str], seeds: list[int]) -> list[Pixels]:
    """One picture per prompt, each from its own seed."""
    made: list[Pixels] = []
    for start in range(0, len(prompts), _BATCH):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + _BATCH]]
        made.extend(to_pixels(paint(prompts[start : start + _BATCH], generators)))
    return made
