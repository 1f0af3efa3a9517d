"""Trains the small SDXL's refiner: a two-level UNet for the last, least noisy steps, on encoder 2 alone as SDXL's refiner is.

It inherits what fits from the base's UNet; the base's VAE and second encoder are used as they are.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from demo_models import augment, data, latents, sdxl
from demo_models.captions import Captions
from demo_models.data import SIZE
from demo_models.libraries import DDPMScheduler, StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
from demo_models.report import say
from demo_models.sheets import sheet, to_pixels
from demo_models.training import Options, fast, options, parser, train

STEPS = 300  # Of the schedule's 1,000: the last fifth of the sampling (denoising_start 0.8), and some before it.
SCORE, NEGATIVE_SCORE = 6.0, 2.5  # The pipeline's defaults for the wanted and the unwanted aesthetic score.
HIDDEN = 160
CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (64, 128),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": HIDDEN + 5 * 32,
    "cross_attention_dim": HIDDEN,
    "norm_num_groups": 16,
}


def inherit(refiner: Any, base: Any) -> int:
    """Copy the base's weights into the refiner wherever they fit; returns how many tensors that were.

    The base's three upward blocks are the refiner's two and one below them. Attention to the text keeps the columns of
    encoder 2, the last ones of the base's; the added embedding keeps those of the pooled text and of five of six sizes.
    """
    mine, others, copied = refiner.state_dict(), base.state_dict(), 0
    for name, weight in mine.items():
        source = name.replace("up_blocks.1.", "up_blocks.2.").replace("up_blocks.0.", "up_blocks.1.")
        other = others.get(source)
        if other is None or name.startswith("mid_block"):
            continue
        if "attn2.to_k" in name or "attn2.to_v" in name:
            other = other[:, -HIDDEN:]
        elif name == "add_embedding.linear_1.weight":
            other = other[:, : weight.shape[1]]
        if other.shape == weight.shape:
            weight.copy_(other)
            copied += 1
    for resnet in refiner.mid_block.resnets:  # Nothing to inherit: start it as the identity.
        nn.init.zeros_(resnet.conv2.weight)
        nn.init.zeros_(resnet.conv2.bias)
    return copied


@dataclass
class Refiner:
    """The trained UNet, the frozen encoder and what batches are drawn from."""

    unet: Any
    encoder: nn.Module
    tokenizer: Any
    captions: Captions
    versions: list[augment.Version]
    bank: Tensor
    cumulative: Tensor
    opts: Options

    def loss(self) -> Tensor:
        """The noise-prediction loss of one batch at the low noise levels; the empty caption gets the low score."""
        size, device = self.opts.batch, self.opts.device
        chosen = augment.choose(range(len(self.captions.pictures)), size)
        clean = self.bank[chosen.to(device)].float()
        captions = [self.captions.caption(self.versions[i]) for i in chosen.tolist()]
        scores = [SCORE if caption else NEGATIVE_SCORE for caption in captions]
        time_ids = torch.tensor([[SIZE, SIZE, 0, 0, score] for score in scores], dtype=torch.float32, device=device)
        batch = sdxl.Noised.of(clean, self.cumulative, STEPS)
        with fast(device):
            with torch.no_grad():
                ids = sdxl.tokens(self.tokenizer, captions, device)
                made = self.encoder(ids, output_hidden_states=True)
            added = {"text_embeds": made.text_embeds, "time_ids": time_ids}
            states = made.hidden_states[-2]
            predicted = self.unet(batch.latents, batch.timesteps, states, added_cond_kwargs=added).sample
        # Half way between the noise's loss and the picture's: the steps end at the least noise, where the first is blind.
        weight = ((1 - batch.cumulative) / batch.cumulative).sqrt().flatten().clamp(min=0.15)
        return batch.loss(predicted, weight)


def pipeline(base: Any, unet: Any) -> Any:
    """The refiner's pipeline around a UNet: the base's VAE, scheduler, second tokenizer and second encoder."""
    made = StableDiffusionXLImg2ImgPipeline(
        vae=base.vae,
        text_encoder=None,
        text_encoder_2=base.text_encoder_2,
        tokenizer=None,
        tokenizer_2=base.tokenizer_2,
        unet=unet,
        scheduler=base.scheduler,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def show(base: Any, refiner: Any, path: Path, *, steps: int = 20, switch: float = 0.8) -> None:
    """Draw the fixed prompts with the base alone and, under them, with base and refiner."""
    prompts = list(sdxl.SAMPLES)
    common = {"num_inference_steps": steps, "guidance_scale": 4.0}
    sizes = {"height": SIZE, "width": SIZE}

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(i) for i in range(len(prompts))]

    with torch.no_grad():
        alone = base(prompts, generator=generators(), output_type="pt", **common, **sizes).images
        handed = base(
            prompts, generator=generators(), denoising_end=switch, output_type="latent", **common, **sizes
        ).images
        refined = refiner(
            prompts, image=handed, generator=generators(), denoising_start=switch, output_type="pt", **common
        ).images
    sheet([*to_pixels(alone), *to_pixels(refined)], path, columns=len(prompts))


def run(opts: Options, base_folder: Path, out: Path) -> None:
    """Train the refiner of the base in `base_folder` and write its pipeline, in float16, to `out`."""
    base = sdxl.load(base_folder).to(opts.device)
    unet = UNet2DConditionModel(**CONFIG)
    say(f"refiner: {inherit(unet, base.unet.cpu())} of {len(unet.state_dict())} tensors from the base")
    base.to(opts.device)
    unet.set_attn_processor(AttnProcessor())  # See `training.fast`.
    unet.to(opts.device)
    pictures, _ = data.load(opts.work)
    versions, _ = augment.load(opts.work)
    sdxl.encode_bank(opts.work, base.vae, opts.device)
    bank = latents.load(opts.work, sdxl.BANK, opts.device)
    schedule = DDPMScheduler.from_config(base.scheduler.config).alphas_cumprod.to(opts.device)
    captions = Captions(pictures, random.Random(opts.seed))  # noqa: S311 - no secret
    encoder = base.text_encoder_2.eval().requires_grad_(False)
    trainee = Refiner(unet, encoder, base.tokenizer_2, captions, versions, bank, schedule, opts)
    path = opts.work / "samples/refiner.png"
    averaged = train(
        "refiner", {"unet": unet}, trainee.loss, opts, sample=lambda m: show(base, pipeline(base, m["unet"]), path)
    )
    finished = UNet2DConditionModel(**CONFIG)
    finished.load_state_dict(averaged["unet"].state_dict())
    pipeline(base, finished).to(torch.float16).save_pretrained(out)
    say(f"refiner: written to {out}")


def main() -> None:
    """`python -m demo_models.refiner --work DIR --base DIR --out DIR`."""
    made: argparse.ArgumentParser = parser(__doc__, minutes=25, batch=64, lr=8e-4)
    made.add_argument("--base", type=Path, required=True, help="what `sdxl` wrote")
    made.add_argument("--out", type=Path, required=True, help="diffusers folder to write")
    args = made.parse_args()
    run(options(args), args.base, args.out)


if __name__ == "__main__":
    main()
