"""The demo's pipeline as it is rebuilt for the benchmark, stage by stage."""

from __future__ import annotations

import numpy as np
import torch

SIZES = {"batch": 2, "latent_height": 8, "latent_width": 8, "height": 64, "width": 64, "tokens": 48}


def examples(specs):
    """Inputs of a stage by chance."""
    choose = np.random.default_rng(0)
    return {name: _example(name, spec, choose) for name, spec in specs.items()}


def _example(name, spec, choose):
    shape = [SIZES.get(length, length) for length in spec["shape"]]
    if name == "input_ids":
        return np.concatenate(
            [choose.integers(2, spec["limit"], (shape[0], shape[1] - 1)), np.ones((shape[0], 1), int)], 1
        )
    return np.zeros(shape, np.int64) if name == "clip_skip" else choose.standard_normal(shape).astype(np.float32)


def of_torch(folder, stage, inputs):
    """The same outputs of PyTorch's module."""
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.inference_mode():
        return {name: output.numpy() for name, output in OUTPUTS[stage](folder, **tensors).items()}


def _unet(folder, sample, timestep, encoder_hidden_states, **added):
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    return {"out_sample": unet(sample, timestep, encoder_hidden_states, added_cond_kwargs=added).sample}


def _decoder(folder, latent_sample):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder / "vae")
    pixels = (vae.decode(latent_sample / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1).permute(
        0, 2, 3, 1
    ) * 255
    return {"sample": pixels.round()}


def _encoder(folder, input_ids, clip_skip):  # noqa: ARG001 - zero
    from transformers import CLIPTextModel

    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    return {"hidden_states": encoder(input_ids, output_hidden_states=True).hidden_states[-2]}


def _encoder_2(folder, input_ids, clip_skip):  # noqa: ARG001 - zero
    from transformers import CLIPTextModelWithProjection

    made = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")(input_ids, output_hidden_states=True)
    return {"hidden_states": made.hidden_states[-2], "text_embeds": made.text_embeds}


OUTPUTS = {"unet": _unet, "vae_decoder": _decoder, "text_encoder": _encoder, "text_encoder_2": _encoder_2}
