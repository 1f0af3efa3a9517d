"""What a UNet that reads masks paints is what diffusers' inpainting pipeline paints with it."""

from __future__ import annotations

import pytest
from diffusers import StableDiffusionXLControlNetInpaintPipeline, StableDiffusionXLInpaintPipeline
from PIL import Image

from triptych_server import Server

from .. import loras
from ..tiny_builds import INPAINTING, refiner_of
from .test_sdxl import Model, both, canvas, follow, mask, picture

MASKED = [
    {"seed": 1, "num_inference_steps": 6, "guidance_scale": 5.0, "strength": 1.0},
    {"seed": 2, "num_inference_steps": 8, "guidance_scale": 3.0},
    {"seed": 3, "num_inference_steps": 9, "guidance_scale": 1.0, "strength": 0.5, "sampler": "euler_a"},
    {"seed": 4, "num_inference_steps": 8, "strength": 0.7, "sampler": "dpmpp_2m", "schedule": "karras", "mask_blur": 6},
    {"seed": 5, "num_inference_steps": 6, "strength": 0.8, "sampler": "heun", "negative_prompt": "", "clip_skip": 1},
    {"seed": 6, "num_inference_steps": 7, "strength": 0.9, "sampler": "unipc", "padding_mask_crop": 9, "mask_blur": 3},
    {"seed": 7, "num_inference_steps": 5, "strength": 1.0, "guidance_rescale": 0.6, "extend": (0, 16, 40, 0)},
    {"seed": 8, "num_inference_steps": 6, "padding_mask_crop": 20, "extend": (8, 0, 0, 8), "sampler": "euler_a"},
    {"seed": 9, "num_inference_steps": 5, "strength": 0.8, "lora": {"ink": 0.8, "fog": 1.0}},
]
WHOLE = [
    {"seed": 11, "num_inference_steps": 5},
    {"seed": 12, "num_inference_steps": 4, "guidance_scale": 1.0, "sampler": "unipc"},
    {"seed": 13, "num_inference_steps": 6, "strength": 0.5, "init_image": True},
    {"seed": 14, "num_inference_steps": 5, "strength": 1.0, "init_image": True, "sampler": "euler_a"},
    {"seed": 15, "num_inference_steps": 5, "lora": {"fog": 1.0}},
]
FOLLOWING = [
    {"seed": 21, "num_inference_steps": 6, "strength": 1.0, "control": {"edges": (0.9, 0, 1)}},
    {"seed": 22, "num_inference_steps": 8, "strength": 0.7, "sampler": "unipc", "control": {"edges": (1.2, 0.2, 0.8)}},
    {
        "seed": 23,
        "num_inference_steps": 7,
        "strength": 0.8,
        "guidance_scale": 1.0,
        "lora": {"ink": 0.8},
        "control": {"edges": (0.6, 0, 0.5)},
    },
]


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """The served model, and diffusers' pipelines of the same weights."""
    (weights, build), adapters = tiny(INPAINTING), tmp_path_factory.mktemp("loras")
    with Server(build, http_port=0, grpc_port=0, metrics_port=0, adapters=adapters) as server:
        made = Model(server.addresses.grpc, weights, INPAINTING, refiner_of(weights))
        made.load_loras(adapters, loras.layers_of(build))
        made.load_controls(weights)
        yield made


@pytest.mark.parametrize("number", range(len(MASKED)))
def test_what_a_mask_shows_is_painted_as_diffusers_paints_it(model, number):
    image, pipeline = picture(model.side), model.pipeline(StableDiffusionXLInpaintPipeline)
    given = model.asked(number, MASKED[number], init_image=image, mask=mask(image.size))
    model.assert_like(given, model.run(pipeline, given, **canvas(pipeline, given)))


@pytest.mark.parametrize("number", range(len(FOLLOWING)))
def test_it_may_follow_a_control(model, number):
    image, kind = picture(model.side), StableDiffusionXLControlNetInpaintPipeline
    given = model.asked(number, FOLLOWING[number], init_image=image, mask=mask(image.size))
    follow(model, given, kind, "control_image", image=image, mask_image=given["mask"])


@pytest.mark.parametrize("number", range(len(WHOLE)))
def test_without_a_mask_all_is_painted_as_under_a_white_one(model, number):
    pipeline = model.pipeline(StableDiffusionXLInpaintPipeline)
    given = model.asked(number, WHOLE[number])
    if "init_image" in given:
        given["init_image"] = picture(model.side)
    image = given.get("init_image", Image.new("RGB", (64, 64)))
    white = {"image": image, "mask_image": Image.new("L", image.size, 255)}
    theirs = {"strength": 1.0, **given}
    model.assert_like(given, model.run(pipeline, theirs, **white))


def test_a_refiner_takes_over_from_it(model):
    given = model.asked(0, {"seed": 21, "num_inference_steps": 8, "denoising_end": 0.6})
    white = {"image": Image.new("RGB", (64, 64)), "mask_image": Image.new("L", (64, 64), 255), "strength": 1.0}
    model.assert_like(given, both(model, given, model.pipeline(StableDiffusionXLInpaintPipeline), white))
