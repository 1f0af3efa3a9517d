"""SDXL's stages as modules whose inputs and outputs are exactly the graph's, and the one table of their tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from triptych_serving.sdxl.latents import MASKED_PICTURE

from ..stages import StageSpec, TensorSpec
from ..weights import Weights
from . import residuals


class ClipStage(nn.Module):
    """A CLIP text encoder: for each row the hidden state before the last layer, or `clip_skip` layers before that.

    It comes after what Optimum's pipelines read: the last hidden state, and those before each layer.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, clip_skip: Tensor) -> tuple[Tensor, ...]:
        output = self.encoder(input_ids, output_hidden_states=True)
        states = output.hidden_states
        return output.last_hidden_state, *states[:-1], _skipped(states, clip_skip)


class ProjectedClipStage(ClipStage):
    """A CLIP text encoder with projection: pooled, projected embedding, and the hidden states as above."""

    def forward(self, input_ids: Tensor, clip_skip: Tensor) -> tuple[Tensor, ...]:
        output = self.encoder(input_ids, output_hidden_states=True)
        states = output.hidden_states
        return output.text_embeds, output.last_hidden_state, *states[:-1], _skipped(states, clip_skip)


def _skipped(hidden_states: tuple[Tensor, ...], clip_skip: Tensor) -> Tensor:
    """`hidden_states[-(clip_skip + 2)]`, as diffusers indexes them, row by row; `clip_skip` is (batch, 1)."""
    layers = torch.stack(hidden_states[:-1])
    wanted = (len(layers) - 1 - clip_skip)[None, :, :, None].expand(1, *layers.shape[1:])
    return torch.gather(layers, 0, wanted)[0]


def _latent_scale(vae: Any) -> tuple[Tensor, Tensor]:
    """Factor and shift of the VAE's latents on their way to the model's, by channel: (1, C, 1, 1) each."""
    config = vae.config
    normalised = config.latents_mean and config.latents_std
    mean, std = (config.latents_mean, config.latents_std) if normalised else ([0.0], [1.0])
    factor = config.scaling_factor / torch.tensor(std).view(1, -1, 1, 1)
    return factor, -torch.tensor(mean).view(1, -1, 1, 1) * factor


class UNetStage(nn.Module):
    """The UNet with one timestep per row, so that rows at different steps share a batch; perhaps with what controls add.

    One of nine channels reads behind the latents those of `masked_picture`, (batch, 1 + C, h, w), which steps leave alone.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.added: dict[str, Any] = {}  # more conditioning of the call that is being made
        self.config: Any = unet.config

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
        timestep_cond: Tensor | None = None,
        masked_picture: Tensor | None = None,
        control: Tensor | None = None,
    ) -> Tensor:
        if masked_picture is not None:
            sample = torch.cat([sample, masked_picture], dim=1)
        *down, mid = residuals.unpacked(control, self.config) if control is not None else (None,)
        out_sample: Tensor = self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            added_cond_kwargs={"text_embeds": text_embeds, "time_ids": time_ids, **self.added},
            down_block_additional_residuals=tuple(down) or None,
            mid_block_additional_residual=mid,
            return_dict=False,
        )[0]
        return out_sample


class VaeDecoderStage(nn.Module):
    """Latents to pixels: scaling, decoding, and diffusers' own way to uint8, height × width × 3.

    They come after what Optimum's pipelines read, the decoded picture in −1 … 1, (batch, 3, height, width).
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        config = vae.config
        std = torch.tensor(config.latents_std or [1.0] * config.latent_channels).view(1, -1, 1, 1)
        mean = torch.tensor(config.latents_mean or [0.0] * config.latent_channels).view(1, -1, 1, 1)
        self.normalised = bool(config.latents_mean and config.latents_std)
        self.std, self.mean = nn.Buffer(std), nn.Buffer(mean)

    def forward(self, latent_sample: Tensor) -> tuple[Tensor, Tensor]:
        if self.normalised:
            latents = latent_sample * self.std / self.vae.config.scaling_factor + self.mean
        else:
            latents = latent_sample / self.vae.config.scaling_factor
        decoded = self.vae.decode(latents, return_dict=False)[0]
        image = (decoded * 0.5 + 0.5).clamp(0, 1)
        return decoded, (image.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)


class VaeEncoderStage(nn.Module):
    """Pixels in −1 … 1 to the distribution of the model's latents, scaled: mean and log-variance, not a sample."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        factor, shift = _latent_scale(vae)
        self.factor, self.shift = nn.Buffer(factor), nn.Buffer(shift)

    def forward(self, sample: Tensor) -> Tensor:
        latents = self.vae.encode(sample, return_dict=False)[0]
        return torch.cat([latents.mean * self.factor + self.shift, latents.logvar + 2 * self.factor.log()], dim=1)


MODULES: dict[str, type[nn.Module]] = {
    "text_encoder": ClipStage,
    "text_encoder_2": ProjectedClipStage,
    "unet": UNetStage,
    "vae_decoder": VaeDecoderStage,
    "vae_encoder": VaeEncoderStage,
    "refiner_text_encoder_2": ProjectedClipStage,
    "refiner_unet": UNetStage,
}


def inpainting(weights: Weights) -> bool:
    """Whether a folder's UNet reads latents, a mask and the latents outside it."""
    config = weights.config("unet")
    return bool(config["in_channels"] == 2 * config["out_channels"] + 1)


def base_specs(weights: Weights, tokens: int) -> dict[str, StageSpec]:
    """Every stage of an SDXL folder; text encoders read `tokens` ids, UNets what they make of so many chunks.

    Names are Optimum's.
    """
    channels = weights.config("vae")["latent_channels"]
    latents = TensorSpec("float32", ("batch", channels, "latent_height", "latent_width"))
    moments = TensorSpec("float32", ("batch", 2 * channels, "latent_height", "latent_width"))
    return {
        "text_encoder": _clip(weights, "text_encoder", tokens),
        "text_encoder_2": _clip(weights, "text_encoder_2", tokens),
        "unet": _unet(weights, time_ids=6),
        "vae_decoder": StageSpec(
            "vae",
            {"latent_sample": latents},
            {"sample": TensorSpec("uint8", ("batch", "height", "width", 3))},
            ("decoded", "sample"),
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
    unet = {"refiner_unet": _unet(weights, time_ids=5 if aesthetics else 6)}
    encoder = {"refiner_text_encoder_2": _clip(weights, "text_encoder_2", tokens)}
    return {**encoder, **unet} if own_text_encoder else unet


def _clip(weights: Weights, component: str, tokens: int) -> StageSpec:
    config = weights.config(component)
    inputs = {
        "input_ids": TensorSpec("int64", ("batch", tokens), config["vocab_size"]),
        "clip_skip": TensorSpec("int64", ("batch", 1), config["num_hidden_layers"]),
    }
    hidden_states = TensorSpec("float32", ("batch", tokens, config["hidden_size"]))
    before_layers = (f"hidden_states.{layer}" for layer in range(config["num_hidden_layers"]))
    states = ("last_hidden_state", *before_layers, "hidden_states")
    if component == "text_encoder":
        return StageSpec(component, inputs, {"hidden_states": hidden_states}, states, {"clip_skip": 0})
    outputs = {
        "hidden_states": hidden_states,
        "text_embeds": TensorSpec("float32", ("batch", config["projection_dim"])),
    }
    return StageSpec(component, inputs, outputs, ("text_embeds", *states), {"clip_skip": 0})


def _unet(weights: Weights, time_ids: int) -> StageSpec:
    config, pooled = weights.config("unet"), weights.config("text_encoder_2")["projection_dim"]
    latents = TensorSpec("float32", ("batch", config["out_channels"], "latent_height", "latent_width"))
    inputs = {
        "sample": latents,
        "timestep": TensorSpec("float32", ("batch",)),
        "encoder_hidden_states": TensorSpec("float32", ("batch", "tokens", config["cross_attention_dim"])),
        "text_embeds": TensorSpec("float32", ("batch", pooled)),
        "time_ids": TensorSpec("float32", ("batch", time_ids)),
    }
    if config.get("time_cond_proj_dim"):
        inputs["timestep_cond"] = TensorSpec("float32", ("batch", config["time_cond_proj_dim"]))
    if inpainting(weights):
        inputs[MASKED_PICTURE] = replace(latents, shape=("batch", 1 + config["out_channels"], *latents.shape[2:]))
    return StageSpec("unet", inputs, {"out_sample": latents}, one_for_all={"timestep": None})
