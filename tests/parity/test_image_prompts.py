"""What an image prompt draws is what diffusers' IP-Adapters draw."""

from __future__ import annotations

import random

import numpy as np
import pytest
from diffusers import (
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from transformers import CLIPImageProcessor

from triptych_server import Server
from triptych_serving.sdxl.image_prompts import pixel_values

from .. import ip_adapters
from ..serving.drawn import picture as drawn
from ..tiny_builds import PROMPTED, refiner_of
from .test_sdxl import Model, both, canvas, follow, mask, picture

TEXT = [
    {"seed": 1, "num_inference_steps": 6, "ip_adapter": "plain", "ip_adapter_scale": 1.0},
    {"seed": 2, "num_inference_steps": 5, "ip_adapter": "plus", "ip_adapter_scale": 0.6, "negative_prompt": "grey"},
    {"seed": 3, "num_inference_steps": 6, "ip_adapter": "plus", "guidance_scale": 1.0, "sampler": "euler_a"},
    {"seed": 4, "num_inference_steps": 7, "ip_adapter_scale": 2.0, "sampler": "dpmpp_2m", "schedule": "karras"},
    {"seed": 5, "num_inference_steps": 4, "ip_adapter": "plus", "ip_adapter_scale": 0.0, "guidance_rescale": 0.5},
]
PICTURE = {"seed": 6, "num_inference_steps": 8, "strength": 0.6, "ip_adapter": "plus", "sampler": "unipc"}
MASKED = {"seed": 7, "num_inference_steps": 6, "ip_adapter_scale": 1.4, "padding_mask_crop": 8, "sampler": "heun"}
REFINED = {"seed": 8, "num_inference_steps": 8, "denoising_end": 0.6, "ip_adapter": "plus", "ip_adapter_scale": 0.9}
FOLLOWING = {"seed": 9, "num_inference_steps": 6, "ip_adapter_scale": 0.8, "control": {"edges": (0.9, 0, 0.7)}}


class Prompted(Model):
    """A served model, and diffusers' with the same adapters, both of which its pipelines have loaded."""

    def __init__(self, url, weights):
        super().__init__(url, weights, PROMPTED, refiner_of(weights))
        folder = ip_adapters.folder_of(weights)
        files = [f"{kind}.safetensors" for kind in ip_adapters.TOKENS]
        self.base.load_ip_adapter(folder, subfolder="", weight_name=files)
        self.load_controls(weights)

    def like(self, given):
        """What a call of diffusers' takes for a request's image prompt."""
        scales = dict.fromkeys(ip_adapters.TOKENS, 0.0)
        scales[given.get("ip_adapter", "plain")] = given.get("ip_adapter_scale", 1.0)
        self.base.set_ip_adapter_scale([*scales.values()])
        return {"ip_adapter_image": [given["ip_adapter_image"]] * len(scales)}


@pytest.fixture(scope="module")
def model(tiny):
    """The served model with its image prompts, and diffusers' pipelines of the same weights."""
    weights, build = tiny(PROMPTED)
    with Server(build, http_port=0, grpc_port=0, metrics_port=0) as server:
        yield Prompted(server.addresses.grpc, weights)


@pytest.mark.parametrize("number", range(len(TEXT)))
def test_a_picture_beside_the_text_is_heard_as_diffusers_hears_it(model, number):
    given = model.asked(number, TEXT[number], ip_adapter_image=drawn(size=(90 + 40 * number, 70)))
    model.assert_like(given, model.run(model.pipeline(StableDiffusionXLPipeline), given, **model.like(given)))


def test_it_goes_with_a_picture_to_start_from(model):
    given = model.asked(0, PICTURE, init_image=picture(model.side), ip_adapter_image=drawn())
    size = model.sizes(0)
    resized = given["init_image"].resize((size["width"], size["height"]), Image.Resampling.LANCZOS)
    theirs = {name: value for name, value in given.items() if name not in size}
    pipeline = model.pipeline(StableDiffusionXLImg2ImgPipeline)
    model.assert_like(given, model.run(pipeline, theirs, image=resized, **model.like(given)))


def test_it_goes_with_a_mask(model):
    image, pipeline = picture(model.side), model.pipeline(StableDiffusionXLInpaintPipeline)
    given = model.asked(1, MASKED, init_image=image, mask=mask(image.size), ip_adapter_image=drawn())
    model.assert_like(given, model.run(pipeline, given, **canvas(pipeline, given), **model.like(given)))


def test_a_refiner_does_not_see_it(model):
    given = model.asked(2, REFINED, ip_adapter_image=drawn())
    model.assert_like(given, both(model, given, model.pipeline(StableDiffusionXLPipeline), model.like(given)))


def test_it_goes_with_a_control(model):
    given = model.asked(1, FOLLOWING, ip_adapter_image=drawn())
    follow(model, given, StableDiffusionXLControlNetPipeline, "image", **model.like(given))
    image = picture(model.side)
    given = model.asked(
        0, {**FOLLOWING, "strength": 0.8, "ip_adapter": "plus"}, init_image=image, ip_adapter_image=drawn()
    )
    resized = image.resize((given["width"], given["height"]), Image.Resampling.LANCZOS)
    kind = StableDiffusionXLControlNetImg2ImgPipeline
    follow(model, given, kind, "control_image", image=resized, **model.like(given))


def test_a_picture_is_seen_as_clip_sees_it():
    choose, processor = random.Random(2), CLIPImageProcessor(size=32, crop_size=32)
    for _ in range(100):
        image = drawn(size=(choose.randint(1, 300), choose.randint(1, 300)))
        theirs = processor(image, return_tensors="np").pixel_values
        # Theirs is the middle of the whole resized; Pillow rounds once more on either way, to 8 bits.
        np.testing.assert_allclose(pixel_values(image, 32), theirs, atol=2.01 / 255 / 0.26)


def test_of_a_sliver_the_middle_is_seen():
    image = Image.new("RGB", (60_000, 1), "red")
    assert np.ptp(pixel_values(image, 32)[0, 0]) == 0
