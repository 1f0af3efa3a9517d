"""Trains the small SDXL's UNet and both text encoders further on varied captions and augmented pictures.

Starts from a diffusers folder; its VAE, tokenizers and scheduler are kept as they are.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from demo_models import augment, data, latents
from demo_models.captions import Captions
from demo_models.data import SIZE
from demo_models.libraries import DDPMScheduler, StableDiffusionXLPipeline
from demo_models.report import say
from demo_models.sheets import sheet, to_pixels
from demo_models.training import Options, fast, options, parser, train

BANK = "sdxl_latents"
SNR_LIMIT = 5.0  # Min-SNR weighting, arXiv 2303.09556.
SAMPLES = ("a 3d render of an airplane", "a flat icon of the cat", "a green apple", "an octopus in a flat style",
           "a blue rocket", "3d house", "a red car", "an emoji of a penguin")  # fmt: skip


def load(folder: Path) -> Any:
    """The pipeline in float32, quiet."""
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def encode_bank(work: Path, vae: Any, device: str) -> None:
    """Encode every version with the VAE: [10·N, 4, 16, 16], scaled as the UNet takes them."""
    vae.to(device, memory_format=torch.channels_last)
    scale = vae.config.scaling_factor
    latents.write(work, BANK, lambda images: vae.encode(images * 2 - 1).latent_dist.mean * scale, device)


def tokens(tokenizer: Any, captions: list[str], device: str) -> Tensor:
    """The captions' token ids, padded to the tokenizer's length: [B, 24]."""
    length = tokenizer.model_max_length
    made = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids: Tensor = made.input_ids
    return ids.to(device)


def condition(encoder: nn.Module, encoder_2: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    """As the pipeline does it: both encoders' last hidden states but one, [B, 24, 96 + 160], and the pooled second, [B, 160]."""
    first = encoder(ids, output_hidden_states=True).hidden_states[-2]
    second = encoder_2(ids, output_hidden_states=True)
    return torch.cat([first, second.hidden_states[-2]], -1), second.text_embeds


class Noised(NamedTuple):
    """A batch for a loss of predicted noise."""

    latents: Tensor  # [B, 4, 16, 16], as the noise too
    noise: Tensor
    timesteps: Tensor  # [B], int64
    cumulative: Tensor  # [B, 1, 1, 1]: ᾱ at these

    @classmethod
    def of(cls, clean: Tensor, schedule: Tensor, steps: int = 1000) -> Noised:
        """Add noise of random timesteps below `steps` to clean latents; `schedule` has ᾱ of every timestep."""
        size, device = len(clean), clean.device
        # Stratified: one timestep from each of `size` equal parts, which makes the loss less noisy.
        timesteps = ((torch.arange(size, device=device) + torch.rand(size, device=device)) * (steps / size)).long()
        noise = torch.randn_like(clean)
        cumulative = schedule[timesteps].view(-1, 1, 1, 1)
        return cls(cumulative.sqrt() * clean + (1 - cumulative).sqrt() * noise, noise, timesteps, cumulative)

    def loss(self, predicted: Tensor, weight: Tensor) -> Tensor:
        """The weighted mean of the squared error; `weight` is [B]."""
        squares: Tensor = (predicted.float() - self.noise).square().mean((1, 2, 3))
        return (squares * weight).mean()


def min_snr(cumulative: Tensor) -> Tensor:
    """The weight of a noise-prediction loss where ᾱ is `cumulative`: min(SNR, 5) / SNR."""
    snr = cumulative / (1 - cumulative)
    return snr.clamp(max=SNR_LIMIT) / snr


@dataclass
class Sdxl:
    """The trained modules, the bank and the noise schedule."""

    pipe: Any
    captions: Captions
    versions: list[augment.Version]
    bank: Tensor
    cumulative: Tensor
    opts: Options

    def loss(self) -> Tensor:
        """The weighted noise-prediction loss of one batch."""
        size, device = self.opts.batch, self.opts.device
        chosen = augment.choose(range(len(self.captions.pictures)), size)
        clean = self.bank[chosen.to(device)].float()
        ids = tokens(self.pipe.tokenizer, [self.captions.caption(self.versions[i]) for i in chosen.tolist()], device)
        batch = Noised.of(clean, self.cumulative)
        time_ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32, device=device).expand(size, -1)
        with fast(device):
            hidden, pooled = condition(self.pipe.text_encoder, self.pipe.text_encoder_2, ids)
            added = {"text_embeds": pooled, "time_ids": time_ids}
            made = self.pipe.unet(batch.latents, batch.timesteps, hidden, added_cond_kwargs=added).sample
        return batch.loss(made, min_snr(batch.cumulative.flatten()))


def sample(pipe: Any, path: Path, *, steps: int = 12) -> None:
    """Draw the fixed prompts, two seeds each, with the weights that the pipeline holds."""
    rows = []
    for seed in (0, 1):
        generators = [torch.Generator().manual_seed(seed) for _ in SAMPLES]
        sizes = {"height": SIZE, "width": SIZE, "num_inference_steps": steps, "guidance_scale": 4.0}
        with torch.no_grad(), fast(pipe.device.type):
            rows.append(pipe(list(SAMPLES), generator=generators, output_type="pt", **sizes).images)
    sheet([picture for row in rows for picture in to_pixels(row)], path, columns=len(SAMPLES), captions=SAMPLES * 2)


def blend(module: nn.Module, trained: nn.Module, share: float) -> None:
    """Move a module's weights towards the trained ones by a share of the way (WiSE-FT, arXiv 2109.01903).

    A short training learns the new captions and forgets some of the old pictures; part of the way, both are there.
    """
    mine, others = module.state_dict(), trained.state_dict()
    module.load_state_dict({name: torch.lerp(weight, others[name], share) for name, weight in mine.items()})


def run(opts: Options, start_from: Path, out: Path, share: float) -> None:
    """Train from `start_from` and write the pipeline part of the way to the result, in float16, to `out`."""
    pipe = load(start_from)
    encode_bank(opts.work, pipe.vae, opts.device)
    pipe.unet.set_attn_processor(AttnProcessor())  # See `training.fast`.
    pipe.to(opts.device)
    pictures, _ = data.load(opts.work)
    versions, _ = augment.load(opts.work)
    schedule = DDPMScheduler.from_config(pipe.scheduler.config).alphas_cumprod.to(opts.device)
    captions = Captions(pictures, random.Random(opts.seed))  # noqa: S311 - no secret
    trainee = Sdxl(pipe, captions, versions, latents.load(opts.work, BANK, opts.device), schedule, opts)
    modules: dict[str, nn.Module] = {n: getattr(pipe, n).train() for n in ("unet", "text_encoder", "text_encoder_2")}
    shown = load(start_from).to(opts.device)

    def show(averaged: dict[str, nn.Module]) -> None:
        for name, module in averaged.items():
            getattr(shown, name).load_state_dict(module.state_dict())
        sample(shown, opts.work / "samples/sdxl.png")

    averaged = train("sdxl", modules, trainee.loss, opts, sample=show)
    finished = load(start_from)
    for name, module in averaged.items():
        blend(getattr(finished, name), module.cpu(), share)
    finished.to(torch.float16).save_pretrained(out)
    say(f"sdxl: written to {out}")


def main() -> None:
    """`python -m demo_models.sdxl --work DIR --start-from DIR --out DIR`."""
    made: argparse.ArgumentParser = parser(__doc__, minutes=55, batch=64, lr=5e-4)
    made.add_argument("--start-from", type=Path, required=True, help="diffusers folder of the model to go on from")
    made.add_argument("--out", type=Path, required=True, help="diffusers folder to write")
    made.add_argument("--share", type=float, default=0.65, help="how far to go towards the trained weights, 0–1")
    args = made.parse_args()
    run(options(args), args.start_from, args.out, args.share)


if __name__ == "__main__":
    main()
