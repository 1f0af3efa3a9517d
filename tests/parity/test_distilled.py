"""LoRAs merged at export, and the few-step recipes that they are published for: what is served is what diffusers makes."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler
from PIL import Image

from triptych_export.build import ExportOptions, export
from triptych_export.sdxl.recipe import DISTILLED
from triptych_server import Server
from triptych_serving.manifest import sha256

from .. import plain, tiny_lora, tiny_sdxl

PROMPT, SEED = "a 3d render of a red apple", 5
# Each as its model card says: the scheduler over the folder's own, and the call.
RECIPES = {
    "lightning": (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}, {"num_inference_steps": 4}, 0.0),
    "hyper-sd": (DDIMScheduler, {"timestep_spacing": "trailing"}, {"num_inference_steps": 4}, 0.0),
    "lcm": (LCMScheduler, {}, {"num_inference_steps": 4}, 1.0),
    "dmd2": (LCMScheduler, {}, {"timesteps": [999, 749, 499, 249]}, 0.0),
}
COMPONENTS = ["unet", "text_encoder", "text_encoder_2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny SDXL whose scheduler's config says what SDXL's says, with two LoRAs, one in each naming."""
    made = tmp_path_factory.mktemp("distilled")
    weights = made / "weights"
    tiny_sdxl.make(weights, 2)
    config = weights / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "clip_sample": False, "set_alpha_to_one": False}))
    pipeline = tiny_sdxl.load(weights)
    tiny_lora.make(made / "few steps.safetensors", pipeline, 1, kohya=True)
    tiny_lora.make(made / "style.safetensors", pipeline, 2, kohya=False)
    return made


@pytest.fixture(scope="module")
def theirs(folder):
    """diffusers' pipeline with both fused."""
    pipeline = tiny_sdxl.load(folder / "weights")
    for name, weight in (("few steps", 1.0), ("style", -0.5)):
        pipeline.load_lora_weights(str(folder), weight_name=f"{name}.safetensors")
        pipeline.fuse_lora(components=COMPONENTS, lora_scale=weight)
        pipeline.unload_lora_weights()
    return pipeline


@pytest.mark.parametrize("name", RECIPES)
def test_a_merged_lora_with_its_recipe_is_diffusers(folder, theirs, name):
    loras = [str(folder / "few steps.safetensors"), f"{folder / 'style.safetensors'}:-0.5"]
    build = folder / "build"  # the stages are kept from one recipe to the next
    manifest = export(folder / "weights", build, ExportOptions(lora=loras, distilled=name, samplers=["euler:default"]))
    scheduler, options, call, guidance = RECIPES[name]
    theirs.scheduler = scheduler.from_config(theirs.scheduler.config, **options)
    with Server(build, http_port=0, grpc_port=0, metrics_port=0) as server:
        receipt = assert_like(server, theirs, guidance, call)
        assert receipt["merged"] == [
            {"name": "few steps", "sha256": sha256(folder / "few steps.safetensors"), "weight": 1.0},
            {"name": "style", "sha256": sha256(folder / "style.safetensors"), "weight": -0.5},
        ]
        if name == "dmd2":
            assert_like(server, theirs, guidance, {"timesteps": [399]}, num_inference_steps=1)
    card = manifest.model
    assert (card.default_num_inference_steps, card.default_guidance_scale) == (4, guidance)


def assert_like(server, theirs, guidance, call, **asked):
    """The picture of a request that says no more than it must."""
    answer = plain.grpc(server.addresses.grpc, prompt=PROMPT, seed=SEED, **asked)
    ours = np.asarray(Image.open(io.BytesIO(answer["image"]))).astype(int)
    generator = torch.Generator("cpu").manual_seed(SEED)
    image = theirs(PROMPT, generator=generator, guidance_scale=guidance, **call).images[0]
    assert np.abs(ours - np.asarray(image).astype(int)).max() <= 1
    assert ours.std() > 1
    return answer["receipt"]


def test_every_recipe_is_compared():
    assert RECIPES.keys() == DISTILLED.keys()
