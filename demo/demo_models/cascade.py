"""What Stable Cascade's two trained stages share: the noise, the loss, a sampler for looking at them, and the folders."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from demo_models import data
from demo_models.libraries import (
    DDPMWuerstchenScheduler,
    SDCascadeAttnBlock,
    SDCascadeResBlock,
    SDCascadeTimestepBlock,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
)

# One latent place of the prior per 32 pixels and 8 latent places of the decoder per place of the prior: 128 pixels give 4×4
# and 32×32. Stable Cascade's own figures, 42.67 and 10.67, would give 3×3: too few places to draw in.
RESOLUTION_MULTIPLE = 32.0
LATENT_DIM_SCALE = 8.0
# The scheduler's own options. The published models keep `scaler` at 1: of ten steps the first then multiplies the network's
# error by fifteen, which a billion parameters bear and four million do not. At 2 the noisy steps are finer: by four at most.
SCALER, _OFFSET = 2.0, 0.008
_WEIGHT_LIMIT = 20.0
_CONSTANT = 6.0
Denoise = Callable[[Tensor, Tensor], Tensor]


class Precise(nn.Sequential):
    """Layers kept in float32 under autocast.

    Near t = 1 the noise to predict is the input itself to within a hundredth, and the first sampling steps multiply errors:
    bfloat16's three digits at the network's two ends would show in the pictures.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Sequential, in float32."""
        with torch.autocast(x.device.type, enabled=False):
            made: Tensor = super().forward(x.float())  # type: ignore[no-untyped-call]
        return made


class _ResponseNorm(torch.autograd.Function):
    """x·(1 + γ·S) + β with S = ‖x‖ / mean‖x‖, the norms over the places of a channel: x [B, H, W, C], γ and β [C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """The normalised x, in x's type."""
        norm = (x * x).sum((1, 2), keepdim=True).float().sqrt() + 1e-6
        mean = norm.mean(-1, keepdim=True) + 1e-6
        scale = (1 + gamma * norm / mean).to(x.dtype)
        ctx.save_for_backward(x, gamma, norm, mean, scale)
        return torch.addcmul(beta.to(x.dtype), x, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of x, γ and β."""
        (grad,) = grads
        x, gamma, norm, mean, scale = ctx.saved_tensors
        along = (grad * x).sum((1, 2), keepdim=True).float()
        by_share = along * gamma
        by_norm = by_share / mean - (by_share * norm).mean(-1, keepdim=True) / mean.square()
        by_x = torch.addcmul(grad * scale, x, (by_norm / norm).to(x.dtype))
        return by_x, (along * norm / mean).sum((0, 1, 2)), grad.sum((0, 1, 2)).float()


class ResponseNorm(nn.Module):
    """Diffusers' GlobalResponseNorm, equal in value and in its weights' names, in a third of its time on a CPU.

    Its own form makes eight passes over the network's widest tensors and takes the norm in float32.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] → the same."""
        made: Tensor = _ResponseNorm.apply(x, self.gamma.flatten(), self.beta.flatten())  # type: ignore[no-untyped-call]
        return made


class GridDepthwise(nn.Module):
    """A depthwise 3×3 convolution over a small square grid as one product with a [C, side², side²] matrix per channel.

    Equal to nn.Conv2d in value and in its weights' names; on a CPU it is quicker, forwards and backwards.
    """

    def __init__(self, conv: nn.Conv2d, side: int) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        place = torch.arange(side)
        self.register_buffer("basis", torch.zeros(9, side * side, side * side), persistent=False)
        for tap, (down, right) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
            y, x = torch.meshgrid(place, place, indexing="ij")
            inside = ((y + down).clamp(0, side - 1) == y + down) & ((x + right).clamp(0, side - 1) == x + right)
            self.basis[tap, ((y + down) * side + x + right)[inside], (y * side + x)[inside]] = 1  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, side, side] → the same."""
        size, wide, *grid = x.shape
        places = grid[0] * grid[1]
        matrices = (self.weight.view(wide, 9) @ self.basis.flatten(1)).view(wide, places, places)  # type: ignore[operator]
        rows = x.reshape(size, wide, places).transpose(0, 1).to(matrices.dtype)
        made = torch.bmm(rows, matrices) + self.bias.view(wide, 1, 1).to(matrices.dtype)  # type: ignore[union-attr]
        return made.transpose(0, 1).reshape(x.shape)


@torch.no_grad()
def _identity_start(unet: Any) -> None:
    """Set a one-level network's weights so that it begins by returning its input, which is nearly the noise it must predict.

    Both ends are layer norms without weights, which forget how large their input was. An eighth of the channels therefore
    hold constants, so large that the norm's scale hardly depends on the rest; the input passes beside them by an orthogonal
    map whose transpose brings it back. Whatever the blocks add starts at a tenth.
    """
    into, out = unet.embedding[1], unet.clf[1]
    wide, values = into.weight.shape[:2]
    kept = wide // 8
    constants = _CONSTANT * torch.tensor([1.0, -1.0]).repeat(kept // 2)
    passing = torch.linalg.qr(torch.randn(wide - kept, values))[0]
    deviation = math.sqrt((constants.square().sum().item() + values) / wide)
    ends = [into] if unet.config.effnet_in_channels is None else [into, unet.effnet_mapper[2]]
    for conv in ends:
        conv.weight[:kept] = 0
        nn.init.zeros_(conv.bias)
        conv.bias[:kept] = constants
    into.weight[kept:, :, 0, 0] = passing
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)
    out.weight[:, kept:, 0, 0] = passing.T * deviation
    for block in unet.modules():
        added = []
        if isinstance(block, SDCascadeResBlock):
            added = [block.channelwise[-1]]
        elif isinstance(block, SDCascadeAttnBlock):
            added = [block.attention.to_out[0]]
        elif isinstance(block, SDCascadeTimestepBlock):
            for linear in block.children():
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
        for linear in added:
            linear.weight.mul_(0.1)
            nn.init.zeros_(linear.bias)


def trainable(config: dict[str, Any], side: int) -> Any:
    """A new one-level StableCascadeUNet over side² places, ready for training; its weights keep their names.

    It starts as the identity and has both ends in float32, the faster norm and the faster convolution.
    """
    unet = StableCascadeUNet(**config)
    _identity_start(unet)
    unet.embedding = Precise(*unet.embedding)
    unet.clf = Precise(*unet.clf)
    for block in unet.modules():
        if isinstance(block, SDCascadeResBlock):
            block.channelwise[2] = ResponseNorm(block.channelwise[2].gamma.shape[-1])
            block.depthwise = GridDepthwise(block.depthwise, side)
    return unet


def plain(unet: Any) -> Any:
    """The same weights in an ordinary StableCascadeUNet."""
    made = StableCascadeUNet.from_config(unet.config)
    made.load_state_dict(unet.state_dict())
    return made


def cumulative(ratio: Tensor) -> Tensor:
    """ᾱ at t in 0–1, [B] → [B, 1, 1, 1]: DDPMWuerstchenScheduler's cosine, which offers no public function for it."""
    first = math.cos(_OFFSET / (1 + _OFFSET) * math.pi / 2) ** 2
    scaled = 1 - (1 - ratio) ** SCALER
    alpha = torch.cos((scaled + _OFFSET) / (1 + _OFFSET) * math.pi / 2) ** 2 / first
    return alpha.clamp(0.0001, 0.9999).view(-1, 1, 1, 1)


def scheduler() -> Any:
    """The scheduler that both stages are trained for."""
    return DDPMWuerstchenScheduler(scaler=SCALER, s=_OFFSET)


def diffusion_loss(clean: Tensor, denoise: Denoise) -> Tensor:
    """The noise-prediction loss at one random t per sample, weighted like a velocity loss: by 1/ᾱ, at most 20.

    Unweighted, the noisiest times, where the picture's layout is decided, would hardly count: their noise is easy to tell.
    """
    size = len(clean)
    # Stratified: one draw from each of `size` equal parts, which makes the loss less noisy. Even in the scaled time: half of
    # the even ratios would be so noisy that nothing of the picture is left to learn from.
    even = (torch.arange(size, device=clean.device) + torch.rand(size, device=clean.device)) / size
    ratio = 1 - (1 - even) ** (1 / SCALER)
    alpha, noise = cumulative(ratio), torch.randn_like(clean)
    made = denoise(alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, ratio).float()
    weight = (1 / alpha).clamp(max=_WEIGHT_LIMIT)
    return ((made - noise).square() * weight).mean() / weight.mean()


@torch.no_grad()
def sample(denoise: Denoise, noise: Tensor, steps: int) -> Tensor:
    """Sample from noise as the pipelines do."""
    steps_of = scheduler()
    steps_of.set_timesteps(steps, device=noise.device)
    latents = noise
    for ratio in steps_of.timesteps[:-1]:
        t = ratio.expand(len(latents))
        latents = steps_of.step(denoise(latents, t).float(), t, latents).prev_sample
    return latents


def one_level(width: int, depth: int, heads: int) -> dict[str, Any]:
    """The part of a StableCascadeUNet's configuration that makes it one level of `depth` equal blocks.

    The published networks have two levels; here the whole picture is 8×8 or 4×4 places, and with one the input reaches the
    output by the residual stream alone.
    """
    block = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
    return {
        "block_out_channels": (width,),
        "num_attention_heads": (heads,),
        "down_num_layers_per_block": (depth // 2,),
        "up_num_layers_per_block": (depth - depth // 2,),
        "down_blocks_repeat_mappers": (1,),
        "up_blocks_repeat_mappers": (1,),
        "block_types_per_layer": (block,),
        "dropout": (0.0,),
    }


def subset(parser: argparse.ArgumentParser) -> None:
    """The options that train both stages on a part of the pictures: less to learn, so recognisable in less time."""
    parser.add_argument("--groups", type=int, nargs="+", default=list(data.GROUPS), help="emojibase's groups")
    parser.add_argument("--styles", nargs="+", default=["3d", "flat"], choices=["3d", "flat"])


def write_prior(out: Path, prior: nn.Module, text_encoder: nn.Module, tokenizer: Any) -> None:
    """Write the prior's diffusers folder in float16."""
    parts = {"prior": plain(prior), "text_encoder": text_encoder, "tokenizer": tokenizer}
    pipe = StableCascadePriorPipeline(**parts, scheduler=scheduler(), resolution_multiple=RESOLUTION_MULTIPLE)
    pipe.to(torch.float16).save_pretrained(out)


def write_decoder(out: Path, decoder: nn.Module, vqgan: nn.Module, text_encoder: nn.Module, tokenizer: Any) -> None:
    """Write the decoder's diffusers folder in float16."""
    parts = {"decoder": plain(decoder), "vqgan": vqgan, "text_encoder": text_encoder, "tokenizer": tokenizer}
    pipe = StableCascadeDecoderPipeline(**parts, scheduler=scheduler(), latent_dim_scale=LATENT_DIM_SCALE)
    pipe.to(torch.float16).save_pretrained(out)
