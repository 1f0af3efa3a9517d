"""SDXL's stages as modules whose inputs and outputs are exactly the graph's, and the one table of their tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .stages import StageSpec, TensorSpec
from .weights import Weights


class ClipStage(nn.Module):
    """A CLIP text encoder: for each row the hidden state before the last layer, or `clip_skip` layers before that."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, clip_skip: Tensor) -> Tensor:
        return _skipped(self.encoder(input_ids, output_hidden_states=True).hidden_states, clip_skip)


class ProjectedClipStage(ClipStage):
    """A CLIP text encoder with projection: hidden state as above, and pooled, projected embedding."""

    def forward(self, input_ids: Tensor, clip_skip: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output = self.encoder(input_ids, output_hidden_states=True)
        return _skipped(output.hidden_states, clip_skip), output.text_embeds


def _skipped(hidden_states: tuple[Tensor, ...], clip_skip: Tensor) -> Tensor:
    """`hidden_states[-(clip_skip + 2)]`, as diffusers indexes them, row by row; `clip_skip` is (batch, 1)."""
    layers = torch.stack(hidden_states[:-1])
    wanted = (len(layers) - 1 - clip_skip)[None, :, :, None].expand(1, *layers.shape[1:])
    return torch.gather(layers, 0, wanted)[0]


class UNetStage(nn.Module):
    """The UNet with one timestep per row, so that rows at different steps share a batch."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
        timestep_cond: Tensor | None = None,
    ) -> Tensor:
        out_sample: Tensor = self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            added_cond_kwargs={"text_embeds": text_embeds, "time_ids": time_ids},
            return_dict=False,
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
    "refiner_text_encoder_2": ProjectedClipStage,
    "refiner_unet": UNetStage,
}


def base_specs(weights: Weights, tokens: int) -> dict[str, StageSpec]:
    """Every stage of an SDXL folder; prompts are `tokens` ids long. Names are Optimum's."""
    channels = weights.config("vae")["latent_channels"]
    latents = TensorSpec("float32", ("batch", channels, "latent_height", "latent_width"))
    moments = TensorSpec("float32", ("batch", 2 * channels, "latent_height", "latent_width"))
    return {
        "text_encoder": _clip(weights, "text_encoder", tokens),
        "text_encoder_2": _clip(weights, "text_encoder_2", tokens),
        "unet": _unet(weights, tokens, time_ids=6),
        "vae_decoder": StageSpec(
            "vae", {"latent_sample": latents}, {"sample": TensorSpec("uint8", ("batch", "height", "width", 3))}
        ),
        "vae_encoder": StageSpec(
            "vae",
            {"sample": TensorSpec("float32", ("batch", 3, "height", "width"))},
            {"latent_parameters": moments},
        ),
    }


def refiner_specs(weights: Weights, tokens: int, *, own_text_encoder: bool) -> dict[str, StageSpec]:
    """The stages of a refiner's folder: its UNet, and its text encoder where it is not the base's."""
    aesthetics = bool(weights.index.get("requires_aesthetics_score", False))
    unet = {"refiner_unet": _unet(weights, tokens, time_ids=5 if aesthetics else 6)}
    encoder = {"refiner_text_encoder_2": _clip(weights, "text_encoder_2", tokens)}
    return {**encoder, **unet} if own_text_encoder else unet


def _clip(weights: Weights, component: str, tokens: int) -> StageSpec:
    config = weights.config(component)
    inputs = {
        "input_ids": TensorSpec("int64", ("batch", tokens), config["vocab_size"]),
        "clip_skip": TensorSpec("int64", ("batch", 1), config["num_hidden_layers"]),
    }
    hidden_states = TensorSpec("float32", ("batch", tokens, config["hidden_size"]))
    if component == "text_encoder":
        return StageSpec(component, inputs, {"hidden_states": hidden_states})
    text_embeds = TensorSpec("float32", ("batch", config["projection_dim"]))
    return StageSpec(component, inputs, {"hidden_states": hidden_states, "text_embeds": text_embeds})


def _unet(weights: Weights, tokens: int, time_ids: int) -> StageSpec:
    config, pooled = weights.config("unet"), weights.config("text_encoder_2")["projection_dim"]
    latents = TensorSpec("float32", ("batch", config["in_channels"], "latent_height", "latent_width"))
    inputs = {
        "sample": latents,
        "timestep": TensorSpec("float32", ("batch",)),
        "encoder_hidden_states": TensorSpec("float32", ("batch", tokens, config["cross_attention_dim"])),
        "text_embeds": TensorSpec("float32", ("batch", pooled)),
        "time_ids": TensorSpec("float32", ("batch", time_ids)),
    }
    if config.get("time_cond_proj_dim"):
        inputs["timestep_cond"] = TensorSpec("float32", ("batch", config["time_cond_proj_dim"]))
    return StageSpec("unet", inputs, {"out_sample": latents})
