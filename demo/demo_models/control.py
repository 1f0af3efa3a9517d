"""Trains a control (ControlNet) for the small SDXL: pictures follow lines, as an edge detector finds them or a hand draws them.

It is the UNet's way down without attention, 2.4 M parameters, and begins with the UNet's weights wherever they fit.
"""

from __future__ import annotations

import argparse
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn import functional

from demo_models import augment, data, latents, sdxl
from demo_models.captions import Captions
from demo_models.data import SIZE, Pixels
from demo_models.libraries import ControlNetModel, DDPMScheduler, StableDiffusionXLControlNetPipeline
from demo_models.report import say
from demo_models.sheets import sheet, to_pixels
from demo_models.training import Options, fast, options, parser, train

CONFIG: dict[str, Any] = {
    "in_channels": 4,
    "block_out_channels": (64, 128, 192),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "conditioning_embedding_out_channels": (8, 16, 32, 64),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 352,
    "cross_attention_dim": 256,
    "norm_num_groups": 16,
}
# How often a caption is left out, beside those that `Captions` leaves empty: what the lines show must be read from the lines.
WORDLESS = 0.3
# The share of white in black from which a step of brightness or colour is a line: of the least and the greatest there is.
THRESHOLDS = 0.1, 0.35
SHOWN = 0.2  # the threshold of a picture's own lines, to show and to compare
# Lines drawn twice as thick, and pictures of which a rectangle's lines are missing: hands are no edge detectors.
THICK, INCOMPLETE = 0.4, 0.3


def edges(images: Tensor, threshold: Tensor) -> Tensor:
    """Find the lines of pictures in 0–1, (B, 3, H, W): 1 on lines of a pixel's width, else 0, (B, 1, H, W) float32.

    The steepest of the three colours counts, where it is steepest across the line (Canny's detector without hysteresis,
    doi 10.1109/TPAMI.1986.4767851); `threshold`, (B,), is the least steepness.
    """
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=images.device) / 16
    blurred = functional.pad(images.float(), (3, 3, 3, 3), mode="replicate").flatten(0, 1)[:, None]
    blurred = functional.conv2d(functional.conv2d(blurred, row.view(1, 1, 1, 5)), row.view(1, 1, 5, 1))
    sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=images.device) / 4
    across, down = functional.conv2d(blurred, torch.stack([sobel, sobel.T])[:, None]).unbind(1)
    steep, colour = torch.hypot(across, down).view(-1, 3, *images.shape[2:]).max(1)
    across, down = (one.view(-1, 3, *images.shape[2:]).gather(1, colour[:, None])[:, 0] for one in (across, down))
    # The direction across the line, as one of four pairs of neighbours.
    direction = (torch.atan2(down, across) / (math.pi / 4)).round().long() % 4
    padded = functional.pad(steep[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    height, width = steep.shape[1:]
    pairs = [
        torch.maximum(*(padded[:, 1 + s * dy :][:, :height, 1 + s * dx :][..., :width] for s in (1, -1)))
        for dx, dy in ((1, 0), (1, 1), (0, 1), (-1, 1))
    ]
    neighbours = torch.stack(pairs).gather(0, direction[None])[0]
    lines: Tensor = (steep >= neighbours) & (steep > threshold.view(-1, 1, 1))
    return lines[:, None].float()


def by_hand(images: Tensor) -> Tensor:
    """Find the lines of pictures as different people would draw them: (B, 1, H, W)."""
    size, device = len(images), images.device
    low, high = (math.log(one) for one in THRESHOLDS)
    lines = edges(images, (low + (high - low) * torch.rand(size, device=device)).exp())
    thick = torch.rand(size, device=device) < THICK
    lines[thick] = functional.max_pool2d(functional.pad(lines[thick], (0, 1, 0, 1)), 2, stride=1)
    for one in lines[torch.rand(size, device=device) < INCOMPLETE]:
        (top, left), (height, width) = torch.randint(SIZE // 2, (2,)), torch.randint(SIZE // 8, SIZE // 2, (2,))
        one[:, top : top + height, left : left + width] = 0
    return lines


def followed(pictures: Tensor, lines: Tensor, within: int = 2) -> float:
    """The share of the lines' pixels that have a line of the picture within so many pixels, 0–1."""
    drawn = edges(pictures, torch.full((len(pictures),), SHOWN, device=pictures.device))
    near = functional.max_pool2d(drawn, 2 * within + 1, stride=1, padding=within)
    return float((lines[:, :1] * near).sum() / lines[:, :1].sum())


@dataclass
class Control:
    """The trained ControlNet, the frozen rest and what batches are drawn from."""

    net: Any
    pipe: Any
    captions: Captions
    versions: list[augment.Version]
    pixels: Pixels
    bank: Tensor
    cumulative: Tensor
    opts: Options

    def loss(self) -> Tensor:
        """The weighted noise-prediction loss of one batch, through the frozen UNet."""
        size, device = self.opts.batch, self.opts.device
        chosen = augment.choose(range(len(self.captions.pictures)), size)
        clean = self.bank[chosen.to(device)].float()
        images = torch.tensor(self.pixels[chosen.numpy()], device=device).permute(0, 3, 1, 2).float().div(255)
        texts = [self.captions.caption(self.versions[i]) if random.random() > WORDLESS else "" for i in chosen.tolist()]  # noqa: S311
        ids = sdxl.tokens(self.pipe.tokenizer, texts, device)
        batch = sdxl.Noised.of(clean, self.cumulative)
        time_ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32, device=device).expand(size, -1)
        with fast(device):
            with torch.no_grad():
                hidden, pooled = sdxl.condition(self.pipe.text_encoder, self.pipe.text_encoder_2, ids)
            added = {"text_embeds": pooled, "time_ids": time_ids}
            lines = by_hand(images).expand(-1, 3, -1, -1)
            seen = batch.latents, batch.timesteps, hidden
            rest, middle = self.net(*seen, lines, added_cond_kwargs=added, return_dict=False)
            made = self.pipe.unet(
                *seen,
                added_cond_kwargs=added,
                down_block_additional_residuals=rest,
                mid_block_additional_residual=middle,
            ).sample
        return batch.loss(made, sdxl.min_snr(batch.cumulative.flatten()))


def show(pipe: Any, net: Any, pictures: Pixels, path: Path, *, steps: int = 20) -> None:
    """Draw the fixed prompts along the lines of pictures of other things: lines, with them, without."""
    images = torch.tensor(pictures).permute(0, 3, 1, 2).float().div(255)
    lines = edges(images, torch.full((len(images),), SHOWN)).expand(-1, 3, -1, -1)
    made = StableDiffusionXLControlNetPipeline(**pipe.components, controlnet=net, add_watermarker=False)
    made.set_progress_bar_config(disable=True)
    asked = {"height": SIZE, "width": SIZE, "num_inference_steps": steps, "guidance_scale": 4.0, "output_type": "pt"}
    with torch.no_grad():
        rows = [
            scaled(
                list(sdxl.SAMPLES),
                generator=[torch.Generator().manual_seed(i) for i in range(len(sdxl.SAMPLES))],
                **asked,
                **more,
            ).images
            for scaled, more in ((made, {"image": lines.to(made.device)}), (pipe, {}))
        ]
    say("control: lines followed {:.0%}, without it {:.0%}".format(*(followed(row.cpu(), lines) for row in rows)))
    everything = [*to_pixels(lines), *to_pixels(rows[0]), *to_pixels(rows[1])]
    sheet(everything, path, columns=len(sdxl.SAMPLES))


def run(opts: Options, base: Path, out: Path) -> None:
    """Train a ControlNet beside the SDXL in `base` and write it, in float16, to `out`."""
    pipe = sdxl.load(base)
    sdxl.encode_bank(opts.work, pipe.vae, opts.device)
    net = ControlNetModel(**CONFIG)
    own, others = net.state_dict(), pipe.unet.state_dict()
    fit = {name: others[name] for name, weight in own.items() if name in others and others[name].shape == weight.shape}
    net.load_state_dict(own | fit)
    say(f"control: {len(fit)} of {len(own)} tensors from the UNet")
    pipe.unet.set_attn_processor(AttnProcessor())  # See `training.fast`.
    pipe.to(opts.device)
    net.to(opts.device).train()
    for frozen in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2, pipe.vae):
        frozen.eval().requires_grad_(False)
    pictures, pixels = data.load(opts.work)
    versions, bank = augment.load(opts.work)
    schedule = DDPMScheduler.from_config(pipe.scheduler.config).alphas_cumprod.to(opts.device)
    captions = Captions(pictures, random.Random(opts.seed))  # noqa: S311 - no secret
    random.seed(opts.seed)
    trainee = Control(
        net, pipe, captions, versions, bank, latents.load(opts.work, sdxl.BANK, opts.device), schedule, opts
    )
    shown = pixels[:: len(pixels) // len(sdxl.SAMPLES)][: len(sdxl.SAMPLES)]
    path = opts.work / "samples/control.png"
    averaged = train(
        "control", {"control": net}, trainee.loss, opts, sample=lambda made: show(pipe, made["control"], shown, path)
    )
    averaged["control"].to(torch.float16).save_pretrained(out)  # type: ignore[operator] # diffusers' own
    say(f"control: written to {out}")


def main() -> None:
    """`python -m demo_models.control --work DIR --base DIR --out DIR`."""
    made: argparse.ArgumentParser = parser(__doc__, minutes=40, batch=64, lr=1e-3)
    made.add_argument("--base", type=Path, required=True, help="what `sdxl` wrote")
    made.add_argument("--out", type=Path, required=True, help="folder to write the ControlNet to")
    args = made.parse_args()
    run(options(args), args.base, args.out)


if __name__ == "__main__":
    main()
