"""The semantic image encoder: what Stage C draws and Stage B is conditioned on, 128×128 pictures as codes of 16×3×3.

Stable Cascade uses an EfficientNet there. This stand-in is needed for training only: the prior makes codes from text.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from demo_models import augment, data, latents
from demo_models.augment import Version
from demo_models.data import Picture, Pixels
from demo_models.report import say
from demo_models.sheets import sheet, to_pixels
from demo_models.training import Options, fast, options, parser, train

BANK = "codes"
CODE_CHANNELS, CODE_SIDE = 16, 3
ENTERED = 96  # 3 · 2⁵, so that plain halvings end at 3×3.
REDRAWN = 48
# Stage C's samples are off by about this much; codes learnt under it keep apart what must not be confused.
NOISE = 0.25
WIDTHS = (64, 96, 160, 192)
SUBJECT_WEIGHT = 0.05


class Residual(nn.Module):
    """Two 3×3 convolutions beside the identity: [B, C, H, W] → the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The input plus what the convolutions add."""
        return x + self.body(x)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """[B, 3, 128, 128] in 0–1 → [B, 16, 3, 3] of zero mean and unit variance per channel."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, WIDTHS[0], 4, stride=4), Residual(WIDTHS[0])]
        for narrow, wide in itertools.pairwise(WIDTHS):
            layers += [nn.Conv2d(narrow, wide, 2, stride=2), Residual(wide)]
        layers += [nn.Conv2d(WIDTHS[-1], CODE_CHANNELS, 1), nn.BatchNorm2d(CODE_CHANNELS, affine=False)]
        self.body = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """The code."""
        small = functional.interpolate(images, size=(ENTERED, ENTERED), mode="bilinear", antialias=True)
        return self.body(small * 2 - 1)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """[B, 16, 3, 3] → a small picture, [B, 3, 48, 48], and the subject's logits, [B, subjects]; both teach the encoder."""

    def __init__(self, subjects: int) -> None:
        super().__init__()
        side, widths = CODE_SIDE, WIDTHS[::-1]
        # Every output place sees the whole code: which subject it is shows in all nine places together.
        self.spread = nn.Linear(CODE_CHANNELS * side**2, widths[0] * side**2)
        layers: list[nn.Module] = [Residual(widths[0])]
        for wide, narrow in itertools.pairwise(widths):
            layers += [nn.ConvTranspose2d(wide, narrow, 2, stride=2), Residual(narrow)]
        layers += [nn.Conv2d(widths[-1], 12, 3, padding=1), nn.PixelShuffle(2)]
        self.body = nn.Sequential(*layers)
        self.subject = nn.Linear(CODE_CHANNELS * side**2, subjects)

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """The picture in 0–1 and the logits."""
        flat = code.flatten(1)
        seed = self.spread(flat).view(len(code), -1, CODE_SIDE, CODE_SIDE)
        return self.body(seed) * 0.5 + 0.5, self.subject(flat)


class Autoencoder(nn.Module):
    """Encoder and decoder as one module for the training loop."""

    def __init__(self, subjects: int) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder(subjects)


@dataclass
class Batches:
    """Draws versions and their subjects."""

    pictures: list[Picture]
    versions: list[Version]
    bank: Pixels
    opts: Options

    def __post_init__(self) -> None:
        self.subjects = sorted({picture.label for picture in self.pictures})
        index = {label: i for i, label in enumerate(self.subjects)}
        self._labels = torch.tensor([index[self.pictures[v.picture].label] for v in self.versions])

    def draw(self) -> tuple[Tensor, Tensor]:
        """Images, [B, 3, 128, 128] in 0–1, and subject indices, [B]."""
        chosen = torch.randint(len(self.versions), (self.opts.batch,))
        images = torch.tensor(self.bank[chosen.numpy()], device=self.opts.device).permute(0, 3, 1, 2).float().div(255)
        return images.contiguous(memory_format=torch.channels_last), self._labels[chosen].to(self.opts.device)


def loss(model: Autoencoder, images: Tensor, labels: Tensor) -> Tensor:
    """L1 on the small picture through a noisy code, and a little of telling the subjects apart."""
    code = model.encoder(images).float()
    made, logits = model.decoder(code + NOISE * torch.randn_like(code))
    wanted = functional.interpolate(images, size=(REDRAWN, REDRAWN), mode="bilinear", antialias=True)
    pixels: Tensor = (made.float() - wanted).abs().mean()
    return pixels + SUBJECT_WEIGHT * functional.cross_entropy(logits.float(), labels)


def run(opts: Options) -> None:
    """Train, then encode the bank with the averaged encoder."""
    pictures, _ = data.load(opts.work)
    versions, bank = augment.load(opts.work)
    batches = Batches(pictures, versions, bank, opts)
    model = Autoencoder(len(batches.subjects)).to(opts.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def step() -> Tensor:
        images, labels = batches.draw()
        with fast(opts.device):
            return loss(model, images, labels)

    def sample(modules: dict[str, nn.Module]) -> None:
        averaged = modules["image_encoder"]
        images, labels = batches.draw()
        with torch.no_grad(), fast(opts.device):
            code = averaged.encoder(images)  # type: ignore[operator]
            made, logits = averaged.decoder(code + NOISE * torch.randn_like(code))  # type: ignore[operator]
        right = (logits.argmax(1) == labels).float().mean()
        say(f"image_encoder: subject told from the noisy code {right:.0%}, code deviation {code.float().std():.2f}")
        small = functional.interpolate(images[:16], size=(REDRAWN, REDRAWN), mode="bilinear", antialias=True)
        path = opts.work / "samples/image_encoder.png"
        sheet(list(to_pixels(torch.cat([small, made[:16].float()]))), path, columns=16)

    train("image_encoder", {"image_encoder": model}, step, opts, sample=sample)
    averaged = load(opts.work)
    latents.write(opts.work, BANK, averaged.to(opts.device), opts.device)


def load(work: Path) -> Encoder:
    """The averaged encoder out of the training's checkpoint, frozen."""
    prefix = "average.image_encoder.encoder."
    tensors = load_file(work / "image_encoder.safetensors")
    encoder = Encoder()
    encoder.load_state_dict({n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)})
    return encoder.eval().requires_grad_(False)


def main() -> None:
    """`python -m demo_models.image_encoder --work DIR`."""
    made: argparse.ArgumentParser = parser(__doc__, minutes=8, batch=64, lr=2e-3)
    run(options(made.parse_args()))


if __name__ == "__main__":
    main()
