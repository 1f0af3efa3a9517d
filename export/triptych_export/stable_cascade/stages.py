"""Stable Cascade's stages as modules whose inputs and outputs are exactly the graph's, and the one table of their tensors."""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torch.nn.utils.parametrize import register_parametrization

from ..stages import StageSpec, TensorSpec
from ..weights import Weights

MAX_POSITIONS = 10000  # diffusers' factor from timestep ratios to the positions that it embeds


class TextStage(nn.Module):
    """A CLIP text encoder with projection: the last hidden state, and the pooled, projected embedding."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        output = self.encoder(input_ids, attention_mask=attention_mask, output_hidden_states=True)
        return output.hidden_states[-1], output.text_embeds


class PooledTextStage(TextStage):
    """The same without the hidden state: Stage B reads only the pooled embedding."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.encoder(input_ids, attention_mask=attention_mask).text_embeds


class PriorStage(nn.Module):
    """Stage C with one timestep ratio per row."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = _traceable(unet)

    def forward(
        self, sample: Tensor, timestep_ratio: Tensor, clip_text_pooled: Tensor, clip_text: Tensor, clip_img: Tensor
    ) -> Any:
        return self.unet(sample, timestep_ratio, clip_text_pooled, clip_text, clip_img, return_dict=False)[0]


class DecoderStage(nn.Module):
    """Stage B with one timestep ratio per row; `effnet` is what Stage C made."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = _traceable(unet)

    def forward(self, sample: Tensor, timestep_ratio: Tensor, clip_text_pooled: Tensor, effnet: Tensor) -> Any:
        return self.unet(sample, timestep_ratio, clip_text_pooled, effnet=effnet, return_dict=False)[0]


class VqganStage(nn.Module):
    """Latents to pixels: scaling, decoding, and diffusers' own way to uint8, height × width × 3."""

    def __init__(self, vqgan: Any) -> None:
        super().__init__()
        self.vqgan = vqgan

    def forward(self, latent_sample: Tensor) -> Tensor:
        image = self.vqgan.decode(self.vqgan.config.scale_factor * latent_sample).sample.clamp(0, 1)
        pixels: Tensor = (image.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
        return pixels


def _traceable(unet: Any) -> Any:
    """`unet` with two methods whose graphs hold for every size and timestep.

    On the way up, diffusers asks in Python whether a skip has another size, and a graph would keep the answer for the size
    that it was traced at. Interpolated always, with the corners aligned, latents that have the skip's size stay what they
    are, bit by bit. And the timestep's frequencies are worked out once: multiplied by 10000 and put into a sine, the last
    bit in which ONNX Runtime's exponential differs from PyTorch's would show.
    """
    half = unet.config.timestep_ratio_embedding_dim // 2
    frequencies = torch.arange(half).float().mul(-math.log(MAX_POSITIONS) / (half - 1)).exp()
    unet.register_buffer("ratio_frequencies", frequencies, persistent=False)
    unet.get_timestep_ratio_embedding = MethodType(_ratio_embedding, unet)
    unet._up_decode = MethodType(_up_decode, unet)
    return _widened(unet)


class _Widening(nn.Module):
    def forward(self, stored: Tensor) -> Tensor:
        return stored.float()


def _widened(unet: nn.Module) -> nn.Module:
    """`unet` computing in float32 from weights that stay in half precision: Stage C's 3.6 billion fit twice in memory so."""
    for module in list(unet.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dtype != torch.float32:
                register_parametrization(module, name, _Widening(), unsafe=True)
    return unet


def _ratio_embedding(unet: Any, timestep_ratio: Tensor) -> Tensor:
    """`StableCascadeUNet.get_timestep_ratio_embedding`: (batch,) → (batch, timestep_ratio_embedding_dim)."""
    angles = (timestep_ratio * MAX_POSITIONS)[:, None] * unet.ratio_frequencies[None, :]
    return pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, unet.config.timestep_ratio_embedding_dim % 2))


def _up_decode(unet: Any, level_outputs: list[Tensor], r_embed: Tensor, clip: Tensor) -> Tensor:
    """`StableCascadeUNet._up_decode` of diffusers 0.42.1, whose name this has to keep, without its question."""
    x = level_outputs[0]
    levels = zip(level_outputs, unet.up_blocks, unet.up_upscalers, unet.up_repeat_mappers, strict=True)
    for level, (skip, blocks, upscaler, mappers) in enumerate(levels):
        for mapper in (*mappers, None):
            for k, block in enumerate(blocks):
                x = _block(block, x, r_embed, clip, skip if k == 0 and level > 0 else None)
            x = x if mapper is None else mapper(x)
        x = upscaler(x)
    return x


def _block(block: nn.Module, x: Tensor, r_embed: Tensor, clip: Tensor, skip: Tensor | None) -> Any:
    kind = type(block).__name__
    if kind == "SDCascadeResBlock":
        if skip is not None:
            x = interpolate(x.float(), skip.shape[-2:], mode="bilinear", align_corners=True).to(x.dtype)
        return block(x, skip)
    return block(x, {"SDCascadeAttnBlock": clip, "SDCascadeTimestepBlock": r_embed}[kind])


MODULES: dict[str, type[nn.Module]] = {
    "cascade_text_encoder": TextStage,
    "cascade_decoder_text_encoder": PooledTextStage,
    "prior": PriorStage,
    "decoder": DecoderStage,
    "vqgan": VqganStage,
}


def prior_specs(prior: Weights, tokens: int) -> dict[str, StageSpec]:
    """The stages of a folder of Stage C; prompts are `tokens` ids long."""
    unet, text = prior.config("prior"), prior.config("text_encoder")
    latents = TensorSpec("float32", ("batch", unet["in_channels"], "prior_height", "prior_width"))
    hidden_states = TensorSpec("float32", ("batch", tokens, text["hidden_size"]))
    inputs = {
        "sample": latents,
        "timestep_ratio": TensorSpec("float32", ("batch",)),
        "clip_text_pooled": TensorSpec("float32", ("batch", 1, text["projection_dim"])),
        "clip_text": hidden_states,
        "clip_img": TensorSpec("float32", ("batch", 1, unet["clip_image_in_channels"])),
    }
    return {
        "cascade_text_encoder": _text(prior, tokens, {"hidden_states": hidden_states}),
        "prior": StageSpec("prior", inputs, {"out_sample": latents}),
    }


def decoder_specs(decoder: Weights, tokens: int, *, own_text_encoder: bool) -> dict[str, StageSpec]:
    """The stages of a folder of Stage B and Stage A, with its text encoder where that is not Stage C's."""
    unet, text, vqgan = (decoder.config(part) for part in ("decoder", "text_encoder", "vqgan"))
    latents = TensorSpec("float32", ("batch", vqgan["latent_channels"], "latent_height", "latent_width"))
    inputs = {
        "sample": latents,
        "timestep_ratio": TensorSpec("float32", ("batch",)),
        "clip_text_pooled": TensorSpec("float32", ("batch", 1, text["projection_dim"])),
        "effnet": TensorSpec("float32", ("batch", unet["effnet_in_channels"], "prior_height", "prior_width")),
    }
    pixels = TensorSpec("uint8", ("batch", "height", "width", 3))
    encoder = {"cascade_decoder_text_encoder": _text(decoder, tokens, {})} if own_text_encoder else {}
    return {
        **encoder,
        "decoder": StageSpec("decoder", inputs, {"out_sample": latents}),
        "vqgan": StageSpec("vqgan", {"latent_sample": latents}, {"sample": pixels}),
    }


def _text(weights: Weights, tokens: int, outputs: dict[str, TensorSpec]) -> StageSpec:
    config = weights.config("text_encoder")
    inputs = {
        "input_ids": TensorSpec("int64", ("batch", tokens), config["vocab_size"]),
        "attention_mask": TensorSpec("int64", ("batch", tokens), 2),
    }
    text_embeds = TensorSpec("float32", ("batch", config["projection_dim"]))
    return StageSpec("text_encoder", inputs, {**outputs, "text_embeds": text_embeds})
