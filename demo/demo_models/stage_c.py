"""Stable Cascade's Stage C, the prior: draws the image encoder's codes, 24×4×4, from text."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from demo_models import augment, cascade, data, image_encoder, latents, text_encoder
from demo_models.captions import Captions
from demo_models.report import say
from demo_models.training import Options, fast, options, parser, train

WIDTH = 256
PLAIN_SHARE = 0.9  # More than elsewhere, as in Stage B.
IMAGE_CHANNELS = 16  # The input for image prompts is there, as in Stable Cascade, but only ever fed zeros.
CONFIG: dict[str, Any] = {
    **cascade.one_level(WIDTH, depth=6, heads=4),
    "in_channels": image_encoder.CODE_CHANNELS,
    "out_channels": image_encoder.CODE_CHANNELS,
    "conditioning_dim": WIDTH,
    "clip_text_in_channels": 160,
    "clip_text_pooled_in_channels": 160,
    "clip_image_in_channels": IMAGE_CHANNELS,
    "clip_seq": 1,
    "timestep_conditioning_type": ("sca", "crp"),
}


@dataclass
class StageC:
    """The trained network and what its batches are drawn from."""

    unet: Any
    text: nn.Module
    tokenizer: Any
    captions: Captions
    versions: list[augment.Version]
    codes: Tensor
    chosen: list[int]
    opts: Options

    def loss(self) -> Tensor:
        """The weighted noise-prediction loss of one batch; one caption in ten is empty, for guidance."""
        device, size = self.opts.device, self.opts.batch
        chosen = augment.choose(self.chosen, size, PLAIN_SHARE)
        captions = [self.captions.caption(self.versions[i]) for i in chosen.tolist()]
        with torch.no_grad(), fast(device):
            hidden, pooled = text_encoder.embed(self.text, text_encoder.tokenize(self.tokenizer, captions, device))
        image = torch.zeros(size, 1, IMAGE_CHANNELS, device=device)

        def denoise(noisy: Tensor, ratio: Tensor) -> Tensor:
            with fast(device):
                made: Tensor = self.unet(noisy, ratio, pooled, clip_text=hidden, clip_img=image).sample
            return made

        return cascade.diffusion_loss(self.codes[chosen.to(self.codes.device)].float(), denoise)


def run(opts: Options, text_folder: Path, out: Path, groups: list[int], styles: list[str]) -> None:
    """Train Stage C and write the prior's folder."""
    text, tokenizer = text_encoder.load(text_folder, opts.device)
    pictures, _ = data.load(opts.work)
    versions, _ = augment.load(opts.work)
    chosen = data.among(pictures, groups, styles)
    say(f"{len(chosen)} of {len(pictures)} pictures")
    captions = Captions(pictures, random.Random(opts.seed))  # noqa: S311 - no secret
    unet = cascade.trainable(CONFIG, image_encoder.CODE_SIDE).to(opts.device)
    codes = latents.load(opts.work, image_encoder.BANK, opts.device)
    trainee = StageC(unet, text, tokenizer, captions, versions, codes, chosen, opts)
    averaged = train("stage_c", {"unet": unet}, trainee.loss, opts, decay=0.995)
    cascade.write_prior(out, averaged["unet"], text, tokenizer)
    say(f"stage_c: written to {out}")


def main() -> None:
    """`python -m demo_models.stage_c --work DIR --text DIR --out DIR`."""
    made: argparse.ArgumentParser = parser(__doc__, minutes=25, batch=128, lr=1.2e-3)
    made.add_argument("--text", type=Path, required=True, help="what `text_encoder` wrote")
    made.add_argument("--out", type=Path, required=True, help="diffusers folder to write (prior)")
    cascade.subset(made)
    args = made.parse_args()
    run(options(args), args.text, args.out, args.groups, args.styles)


if __name__ == "__main__":
    main()
