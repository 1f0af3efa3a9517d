"""SDXL's stages as modules whose inputs and outputs are exactly the graph's, and the one table of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .weights import Weights


@dataclass(frozen=True)
class TensorSpec:
    """dtype (numpy's name) and shape; a string is a dimension that varies: batch, latent_height, latent_width, …"""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class StageSpec:
    """A stage: which component it comes from, and its tensors by their names in the graph."""

    component: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


class ClipStage(nn.Module):
    """A CLIP text encoder: penultimate hidden state, as SDXL uses it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden_states: Tensor = self.encoder(input_ids, output_hidden_states=True).hidden_states[-2]
        return hidden_states


class ProjectedClipStage(ClipStage):
    """A CLIP text encoder with projection: penultimate hidden state and pooled, projected embedding."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output = self.encoder(input_ids, output_hidden_states=True)
        return output.hidden_states[-2], output.text_embeds


class UNetStage(nn.Module):
    """The UNet with one timestep per row, so that rows at different steps share a batch."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, text_embeds: Tensor, time_ids: Tensor
    ) -> Tensor:
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        out_sample: Tensor = self.unet(
            sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False
        )[0]
        return out_sample


class VaeDecoderStage(nn.Module):
    """Latents to pixels: scaling, decoding, and diffusers' own way to uint8, height × width × 3."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        config = vae.config
        std = torch.tensor(config.latents_std or [1.0] * config.latent_channels).view(1, -1, 1, 1)
        mean = torch.tensor(config.latents_mean or [0.0] * config.latent_channels).view(1, -1, 1, 1)
        self.normalised = bool(config.latents_mean and config.latents_std)
        self.std, self.mean = nn.Buffer(std), nn.Buffer(mean)

    def forward(self, latent_sample: Tensor) -> Tensor:
        if self.normalised:
            latents = latent_sample * self.std / self.vae.config.scaling_factor + self.mean
        else:
            latents = latent_sample / self.vae.config.scaling_factor
        image = (self.vae.decode(latents, return_dict=False)[0] * 0.5 + 0.5).clamp(0, 1)
        pixels: Tensor = (image.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
        return pixels


class VaeEncoderStage(nn.Module):
    """Pixels in −1 … 1 to the distribution of latents: mean and log-variance, not a sample."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: Tensor) -> Tensor:
        latent_parameters: Tensor = self.vae.encode(sample, return_dict=False)[0].parameters
        return latent_parameters


MODULES: dict[str, type[nn.Module]] = {
    "text_encoder": ClipStage,
    "text_encoder_2": ProjectedClipStage,
    "unet": UNetStage,
    "vae_decoder": VaeDecoderStage,
    "vae_encoder": VaeEncoderStage,
}


def specs(weights: Weights, tokens: int) -> dict[str, StageSpec]:
    """Every stage of an SDXL folder; prompts are `tokens` ids long. Names are Optimum's."""
    clip, clip_2, unet, vae = (weights.config(part) for part in ("text_encoder", "text_encoder_2", "unet", "vae"))
    channels = vae["latent_channels"]
    latents = TensorSpec("float32", ("batch", channels, "latent_height", "latent_width"))
    input_ids = {"input_ids": TensorSpec("int64", ("batch", tokens))}

    def hidden(config: Mapping[str, Any]) -> TensorSpec:
        return TensorSpec("float32", ("batch", tokens, config["hidden_size"]))

    text_embeds = TensorSpec("float32", ("batch", clip_2["projection_dim"]))
    conditioning = {
        "encoder_hidden_states": TensorSpec("float32", ("batch", tokens, unet["cross_attention_dim"])),
        "text_embeds": text_embeds,
        "time_ids": TensorSpec("float32", ("batch", 6)),
    }
    moments = TensorSpec("float32", ("batch", 2 * channels, "latent_height", "latent_width"))
    return {
        "text_encoder": StageSpec("text_encoder", input_ids, {"hidden_states": hidden(clip)}),
        "text_encoder_2": StageSpec(
            "text_encoder_2", input_ids, {"hidden_states": hidden(clip_2), "text_embeds": text_embeds}
        ),
        "unet": StageSpec(
            "unet",
            {"sample": latents, "timestep": TensorSpec("float32", ("batch",)), **conditioning},
            {"out_sample": latents},
        ),
        "vae_decoder": StageSpec(
            "vae", {"latent_sample": latents}, {"sample": TensorSpec("uint8", ("batch", "height", "width", 3))}
        ),
        "vae_encoder": StageSpec(
            "vae",
            {"sample": TensorSpec("float32", ("batch", 3, "height", "width"))},
            {"latent_parameters": moments},
        ),
    }
