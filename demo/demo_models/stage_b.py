"""Stable Cascade's Stage B: draws Stage A's latents, 4×32×32, from the prior's code, 24×4×4, and the pooled text."""

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
from demo_models.libraries import PaellaVQModel
from demo_models.report import say
from demo_models.sheets import sheet, to_pixels
from demo_models.training import Options, fast, options, parser, train

BANK = "stage_a_latents"
PLAIN_SHARE = 0.9  # More than elsewhere: this stage has the most to learn, every pixel, at the most seconds a picture.
CODE_DROPPED = 0.1  # Zeroed, so that the decoder's own guidance has something to go by.
CODE_NOISE = 0.3  # At most; the prior's codes are never exact.
WIDTH, PATCH, SIDE = 320, 4, 8
CONFIG: dict[str, Any] = {
    **cascade.one_level(WIDTH, depth=5, heads=5),
    "in_channels": 4,
    "out_channels": 4,
    "patch_size": PATCH,
    "conditioning_dim": 128,
    "clip_text_pooled_in_channels": 160,
    "clip_seq": 4,
    "effnet_in_channels": image_encoder.CODE_CHANNELS,
    "timestep_conditioning_type": ("sca",),
}


def load_vqgan(folder: Path, device: str) -> Any:
    """The frozen Stage A in float32."""
    vqgan = PaellaVQModel.from_pretrained(folder, torch_dtype=torch.float32)
    return vqgan.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


@dataclass
class StageB:
    """The trained network and what its batches are drawn from."""

    unet: Any
    text: nn.Module
    tokenizer: Any
    captions: Captions
    versions: list[augment.Version]
    bank: Tensor
    codes: Tensor
    chosen: list[int]
    opts: Options

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, 4, 32, 32], codes [B, 24, 4, 4] and pooled texts [B, 1, 160] of random versions."""
        device = self.opts.device
        chosen = augment.choose(self.chosen, self.opts.batch, PLAIN_SHARE)
        captions = [self.captions.caption(self.versions[i]) for i in chosen.tolist()]
        with torch.no_grad(), fast(device):
            tokens = text_encoder.tokenize(self.tokenizer, captions, device, padding="longest")
            _, pooled = text_encoder.embed(self.text, tokens)
        chosen = chosen.to(self.bank.device)
        return self.bank[chosen].float(), self.codes[chosen].float(), pooled.float()

    def loss(self) -> Tensor:
        """The weighted noise-prediction loss of one batch, with codes a little wrong and some of them dropped."""
        clean, code, pooled = self.draw()
        amount = CODE_NOISE * torch.rand(len(code), 1, 1, 1, device=code.device)
        learnt = code[:, : image_encoder.COMPONENTS]
        learnt += amount * torch.randn_like(learnt)
        code = code * (torch.rand(len(code), 1, 1, 1, device=code.device) >= CODE_DROPPED)

        def denoise(noisy: Tensor, ratio: Tensor) -> Tensor:
            with fast(self.opts.device):
                made: Tensor = self.unet(noisy, ratio, pooled, effnet=code).sample
            return made

        return cascade.diffusion_loss(clean, denoise)

    def show(self, averaged: nn.Module, vqgan: Any, path: Path) -> None:
        """Eight pictures as Stage A decodes them and, under each, as Stage B draws them from the true code in ten steps."""
        clean, code, pooled = (part[:8] for part in self.draw())

        def denoise(noisy: Tensor, ratio: Tensor) -> Tensor:
            with fast(self.opts.device):
                made: Tensor = averaged(noisy, ratio, pooled, effnet=code).sample
            return made

        made = cascade.sample(denoise, torch.randn_like(clean), 10)
        with torch.no_grad():
            both = vqgan.decode(torch.cat([clean, made]) * vqgan.config.scale_factor).sample
        say(f"stage_b: samples' deviation {made.std():.3f}, of the true ones {clean.std():.3f}")
        sheet(list(to_pixels(both)), path, columns=8)


def run(opts: Options, vqgan_folder: Path, text_folder: Path, out: Path, groups: list[int], styles: list[str]) -> None:
    """Train Stage B and write the decoder's folder."""
    vqgan = load_vqgan(vqgan_folder, opts.device)
    scale = vqgan.config.scale_factor
    latents.write(opts.work, BANK, lambda images: vqgan.encode(images).latents / scale, opts.device)
    text, tokenizer = text_encoder.load(text_folder, opts.device)
    pictures, _ = data.load(opts.work)
    versions, _ = augment.load(opts.work)
    chosen = data.among(pictures, groups, styles)
    say(f"{len(chosen)} of {len(pictures)} pictures")
    captions = Captions(pictures, random.Random(opts.seed))  # noqa: S311 - no secret
    unet = cascade.trainable(CONFIG, SIDE).to(opts.device)
    bank = latents.load(opts.work, BANK, opts.device)
    codes = latents.load(opts.work, image_encoder.BANK, opts.device)
    trainee = StageB(unet, text, tokenizer, captions, versions, bank, codes, chosen, opts)
    path = opts.work / "samples/stage_b.png"
    averaged = train(
        "stage_b",
        {"unet": unet},
        trainee.loss,
        opts,
        decay=0.995,
        sample=lambda m: trainee.show(m["unet"], vqgan, path),
    )
    cascade.write_decoder(out, averaged["unet"], vqgan, text, tokenizer)
    say(f"stage_b: written to {out}")


def main() -> None:
    """`python -m demo_models.stage_b --work DIR --vqgan DIR --text DIR --out DIR`."""
    made: argparse.ArgumentParser = parser(__doc__, minutes=60, batch=32, lr=1.2e-3)
    made.add_argument("--vqgan", type=Path, required=True, help="what `stage_a` wrote")
    made.add_argument("--text", type=Path, required=True, help="what `text_encoder` wrote")
    made.add_argument("--out", type=Path, required=True, help="diffusers folder to write (decoder)")
    cascade.subset(made)
    args = made.parse_args()
    run(options(args), args.vqgan, args.text, args.out, args.groups, args.styles)


if __name__ == "__main__":
    main()
