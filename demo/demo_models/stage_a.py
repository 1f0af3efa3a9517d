"""Stable Cascade's Stage A: the VQGAN (PaellaVQModel, factor 4) between pictures in 0–1 and the latents of Stage B."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from demo_models import augment
from demo_models.data import Pixels
from demo_models.libraries import MixingResidualBlock, PaellaVQModel
from demo_models.report import say
from demo_models.sheets import sheet, to_pixels
from demo_models.training import Options, fast, options, parser, train

CROP = 64
CONFIG = {
    "up_down_scale_factor": 2,
    "levels": 2,
    "bottleneck_blocks": 4,
    "embed_dim": 112,
    "latent_channels": 4,
    "num_vq_embeddings": 1024,
}


def as_tensor(pixels: Pixels, device: str) -> Tensor:
    """uint8 [B, H, W, 3] → 0–1, [B, 3, H, W]."""
    return torch.tensor(pixels, device=device).permute(0, 3, 1, 2).float().div(255)


def crops(bank: Pixels, batch: int, device: str) -> Tensor:
    """Random crops of random versions, [B, 3, 64, 64] in 0–1.

    Of four places tried per crop the one with the most contrast is taken: the emoji's white corners teach nothing.
    """
    chosen = torch.randint(len(bank), (batch,)).tolist()
    found = []
    for index in chosen:
        picture = bank[index]
        corners = torch.randint(0, picture.shape[0] - CROP + 1, (4, 2)).tolist()
        tried = [picture[y : y + CROP, x : x + CROP] for y, x in corners]
        found.append(as_tensor(max(tried, key=lambda crop: float(crop.std()))[None], device))
    return torch.cat(found)


def gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbours along x and along y; a loss on them keeps edges sharp."""
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def reconstruction(made: Tensor, wanted: Tensor) -> Tensor:
    """L1 on the pixels and on both gradients."""
    loss = (made - wanted).abs().mean()
    for mine, other in zip(gradients(made), gradients(wanted), strict=True):
        loss = loss + (mine - other).abs().mean()
    return loss


class StageA(nn.Module):
    """The model with its training pass; a module of its own so that the loop averages one thing."""

    def __init__(self) -> None:
        super().__init__()
        self.vqgan = PaellaVQModel(**CONFIG)
        # The batch norm before the quantiser gives latents of unit variance; spread the codebook over them from the start.
        nn.init.normal_(self.vqgan.vquantizer.embedding.weight)
        for module in self.vqgan.modules():
            if isinstance(
                module, MixingResidualBlock
            ):  # Left at 0 the gates would keep a short training from its blocks.
                module.gammas.data[[2, 5]] = 0.5

    def loss(self, images: Tensor) -> Tensor:
        """Reconstruction plus commitment.

        Per picture the decoder sees either the codebook's latents (straight-through) or the raw ones with a little noise:
        Stage B's output goes through the decoder unquantised, and is never exact.
        """
        latents = self.vqgan.encode(images).latents.float()
        quantised, commitment, _ = self.vqgan.vquantizer(latents)
        noisy = latents + 0.05 * torch.randn_like(latents)
        raw = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.6
        made = self.vqgan.decode(torch.where(raw, noisy, quantised)).sample
        loss: Tensor = reconstruction(made.float(), images) + 0.1 * commitment
        return loss


def measure(model: StageA, bank: Pixels, device: str) -> tuple[float, float, Tensor]:
    """PSNR (dB) on 128 untouched pictures and the latents' standard deviation; also some pairs to look at."""
    images = as_tensor(bank[:: augment.VERSIONS][::14][:128], device)
    with torch.no_grad():
        latents = model.vqgan.encode(images).latents
        made = model.vqgan.decode(latents).sample.clamp(0, 1)
    psnr = -10 * torch.log10((made - images).pow(2).mean((1, 2, 3))).mean()
    return float(psnr), float(latents.std()), torch.cat([images[::8], made[::8]])


def run(opts: Options, out: Path) -> None:
    """Train, measure the latents' deviation, and write the diffusers folder."""
    _, bank = augment.load(opts.work)
    model = StageA().to(opts.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def step() -> Tensor:
        images = crops(bank, opts.batch, opts.device).to(memory_format=torch.channels_last)
        with fast(opts.device):
            loss: Tensor = model.loss(images)
        return loss

    def sample(modules: dict[str, nn.Module]) -> None:
        averaged = modules["stage_a"]
        assert isinstance(averaged, StageA)  # noqa: S101 - for the type checker
        psnr, deviation, pairs = measure(averaged, bank, opts.device)
        say(f"stage_a: PSNR {psnr:.2f} dB, latents' deviation {deviation:.3f}")
        sheet(list(to_pixels(pairs)), opts.work / "samples/stage_a.png", columns=16)

    averaged = train("stage_a", {"stage_a": model}, step, opts, weight_decay=0.0, sample=sample)["stage_a"]
    assert isinstance(averaged, StageA)  # noqa: S101 - for the type checker
    # Stage B is trained on encode(x) / scale_factor, which has unit variance; pipelines multiply before decoding.
    averaged.vqgan.register_to_config(scale_factor=measure(averaged, bank, opts.device)[1])
    averaged.vqgan.to(torch.float16).save_pretrained(out)


def main() -> None:
    """`python -m demo_models.stage_a --work DIR --out DIR`."""
    made: argparse.ArgumentParser = parser(__doc__, minutes=15, batch=16, lr=2e-3)
    made.add_argument("--out", type=Path, required=True, help="diffusers folder to write (PaellaVQModel)")
    args = made.parse_args()
    run(options(args), args.out)


if __name__ == "__main__":
    main()
