"""What is served is what diffusers makes: random tiny SDXLs through export, Triton and the loop."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.server import Server
from triptych_export.samplers import scheduler

from .. import plain, tiny_sdxl
from .conftest import SEEDS

SETTINGS = [
    {"seed": 1, "num_inference_steps": 6, "guidance_scale": 5.0},
    {"seed": 2**40, "num_inference_steps": 9, "guidance_scale": 7.5, "negative_prompt": ""},
    {"seed": 3, "num_inference_steps": 5, "guidance_scale": 3.0, "negative_prompt": "blurred red things"},
    {"seed": 0, "num_inference_steps": 4, "guidance_scale": 1.0},
    {"seed": 5, "num_inference_steps": 8, "guidance_scale": 6.0, "sampler": "dpmpp_2m", "schedule": "karras"},
    {"seed": 6, "num_inference_steps": 7, "guidance_scale": 4.0, "sampler": "euler_a"},
]
PROMPTS = ["a 3d render of a red apple", "fox " * 90]


def theirs(pipeline, settings, scheduler_config, size):
    given = dict(settings)
    pair = given.pop("sampler", "euler"), given.pop("schedule", "default")
    pipeline.scheduler = scheduler(scheduler_config, *pair)
    generator = torch.Generator("cpu").manual_seed(given.pop("seed"))
    return np.asarray(pipeline(generator=generator, **size, **given).images[0]).astype(int)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_served_image_is_diffusers(seed, tiny):
    weights, build = tiny(seed)
    pipeline = tiny_sdxl.load(weights)
    config = dict(pipeline.scheduler.config) | {"_class_name": type(pipeline.scheduler).__name__}
    side = pipeline.default_sample_size * pipeline.vae_scale_factor
    with Server(build, http_port=0, grpc_port=0, metrics_port=0) as server:
        for number, settings in enumerate(SETTINGS):
            wanted = {**settings, "prompt": PROMPTS[number % 2]}
            size = {"height": side, "width": side if number % 3 == 0 else side // 2 * 3}
            answer = plain.grpc(server.addresses.grpc, **wanted, **size)
            ours = np.asarray(Image.open(io.BytesIO(answer["image"]))).astype(int)
            difference = np.abs(ours - theirs(pipeline, wanted, config, size)).max()
            assert difference <= 1, f"{wanted} {size}: {difference}/255"
            assert ours.std() > 1
            assert ("cut" in answer["receipt"]) == (number % 2 == 1)
