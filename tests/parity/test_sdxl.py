"""What is served is what diffusers makes: random tiny SDXLs through export, Triton and the loop."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image, ImageDraw, ImageFilter

from triptych_export.samplers import default_sampler, scheduler
from triptych_server import Server

from .. import loras, plain, tiny_sdxl
from ..tiny_builds import ADAPTERS, CONTROLS, MODE, RANK, REFINERS, SEEDS, control_of, refiner_of

PROMPTS = ["a 3d render of a red apple", "fox " * 90]
TEXT = [
    {"seed": 1, "num_inference_steps": 6, "guidance_scale": 5.0, "clip_skip": 1},
    {"seed": 2**40, "num_inference_steps": 9, "guidance_scale": 7.5, "negative_prompt": "", "guidance_rescale": 0.7},
    {"seed": 3, "num_inference_steps": 5, "guidance_scale": 3.0, "negative_prompt": "blurred red things"},
    {"seed": 0, "num_inference_steps": 4, "guidance_scale": 1.0},
    {"seed": 5, "num_inference_steps": 8, "guidance_scale": 6.0, "sampler": "dpmpp_2m", "schedule": "karras"},
    {"seed": 6, "num_inference_steps": 7, "guidance_scale": 4.0, "sampler": "euler_a", "guidance_end": 0.6},
    {
        "seed": 7,
        "num_inference_steps": 3,
        "guidance_scale": 0.0,
        "sampler": "heun",
        "original_size": (512, 384),
        "target_size": (300, 301),
        "crops_coords_top_left": (16, 5),
    },
]
PICTURE = [
    {"seed": 1, "num_inference_steps": 10, "guidance_scale": 5.0, "strength": 0.7},
    {"seed": 2, "num_inference_steps": 6, "guidance_scale": 1.0},
    {"seed": 3, "num_inference_steps": 9, "guidance_scale": 4.0, "strength": 1.0, "sampler": "euler_a"},
    {"seed": 4, "num_inference_steps": 8, "strength": 0.5, "sampler": "dpmpp_2m", "schedule": "karras"},
    {"seed": 5, "num_inference_steps": 7, "strength": 0.6, "sampler": "heun", "negative_prompt": "grey"},
    {"seed": 6, "num_inference_steps": 9, "strength": 0.8, "sampler": "unipc", "clip_skip": 1},
]
MASKED = [
    {"seed": 1, "num_inference_steps": 6, "guidance_scale": 5.0, "strength": 1.0},
    {"seed": 2, "num_inference_steps": 8, "guidance_scale": 3.0},
    {"seed": 3, "num_inference_steps": 9, "guidance_scale": 1.0, "strength": 0.5, "sampler": "euler_a"},
    {"seed": 4, "num_inference_steps": 8, "strength": 0.7, "sampler": "dpmpp_2m", "schedule": "karras"},
    {"seed": 5, "num_inference_steps": 6, "strength": 0.8, "sampler": "heun", "negative_prompt": ""},
    {"seed": 6, "num_inference_steps": 5, "strength": 0.9, "mask_blur": 5, "padding_mask_crop": 12},
    {"seed": 7, "num_inference_steps": 6, "guidance_scale": 1.0, "padding_mask_crop": 0, "extend": (7, 0, 40, 16)},
]
REFINED = [
    {"seed": 1, "num_inference_steps": 10, "guidance_scale": 5.0, "denoising_end": 0.8},
    {"seed": 2, "num_inference_steps": 9, "guidance_scale": 3.0, "denoising_end": 0.55, "negative_prompt": "grey"},
    {"seed": 3, "num_inference_steps": 7, "guidance_scale": 1.0, "denoising_end": 0.7, "sampler": "euler_a"},
    {"seed": 4, "num_inference_steps": 12, "denoising_end": 0.6, "sampler": "dpmpp_2m", "schedule": "karras"},
    {"seed": 5, "num_inference_steps": 6, "denoising_end": 0.7, "sampler": "heun", "aesthetic_score": 3.5},
    {"seed": 6, "num_inference_steps": 11, "denoising_end": 0.5, "sampler": "unipc", "negative_aesthetic_score": 1.0},
    {"seed": 7, "num_inference_steps": 8, "denoising_end": 0.75, "crops_coords_top_left": (8, 3), "clip_skip": 1},
    {"seed": 8, "num_inference_steps": 10, "denoising_end": 0.8, "init_image": True, "strength": 0.6},
]
# By name, LoRAs of the builds for them, whose ranks are 11 in all; the last for the build that takes 64.
EVERY = ("unet", "text_encoder", "text_encoder_2")
LORAS = {
    "ink": {"naming": "kohya", "ranks": (3, 5)},
    "fog": {"naming": "peft", "ranks": (4,), "stages": EVERY},
    "tin": {"naming": "sgm", "ranks": (2, 1), "stages": EVERY, "dtype": np.float16},
    "big": {"naming": "diffusers", "ranks": (53, 16)},
}
WORN = [
    {"seed": 1, "num_inference_steps": 5, "lora": {"ink": 1.0}},
    {"seed": 2, "num_inference_steps": 4, "guidance_scale": 1.0, "lora": {"fog": 0.7}, "clip_skip": 1},
    {
        "seed": 3,
        "num_inference_steps": 6,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "lora": {"tin": -1.2, "ink": 0.4},
    },
    {"seed": 4, "num_inference_steps": 5, "lora": {"ink": 0.5, "fog": 1.0, "tin": 0.3}, "negative_prompt": "grey"},
    {"seed": 5, "num_inference_steps": 4, "lora": {"fog": 0.6, "tin": 0.9, "big": 0.5, "ink": -0.3}},
    {"seed": 6, "num_inference_steps": 4, "lora": {}},
]
WORN_PICTURE = {"seed": 7, "num_inference_steps": 8, "strength": 0.6, "lora": {"fog": 0.8}}
WORN_REFINED = [
    {"seed": 8, "num_inference_steps": 10, "denoising_end": 0.6, "lora": {"fog": 1.0}},
    {
        "seed": 9,
        "num_inference_steps": 8,
        "denoising_end": 0.5,
        "guidance_scale": 1.0,
        "lora": {"tin": 1.5, "ink": 0.5},
    },
]
# Controls by name: scale, start and end. The second of two is for builds that have it.
FOLLOWING = [
    {"seed": 1, "num_inference_steps": 5, "control": {"edges": (1.0, 0, 1)}},
    {"seed": 2, "num_inference_steps": 6, "guidance_scale": 1.0, "control": {"edges": (0.6, 0.2, 0.7)}, "clip_skip": 1},
    {"seed": 3, "num_inference_steps": 7, "sampler": "heun", "control": {"edges": (1.5, 0, 0.5)}},
    {"seed": 4, "num_inference_steps": 4, "control": {"edges": (0.7, 0, 1), "depth": (0.4, 0, 1)}},
    {
        "seed": 5,
        "num_inference_steps": 9,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "negative_prompt": "grey",
        "control": {"depth": (1.2, 0.3, 1), "edges": (0.5, 0, 0.6)},
    },
    {"seed": 6, "num_inference_steps": 4, "sampler": "euler_a", "control": {"edges": (0.0, 0, 1)}},
]
FOLLOWING_PICTURES = [
    {"seed": 7, "num_inference_steps": 9, "strength": 0.7, "control": {"edges": (0.8, 0, 0.6)}},
    {"seed": 8, "num_inference_steps": 6, "strength": 0.5, "control": {"edges": (1.0, 0, 1), "depth": (0.5, 0.5, 1)}},
    {"seed": 9, "num_inference_steps": 6, "strength": 1.0, "guidance_scale": 1.0, "control": {"depth": (1.4, 0.2, 1)}},
    {"seed": 1, "num_inference_steps": 7, "strength": 0.6, "sampler": "heun", "control": {"edges": (0.7, 0, 0.5)}},
    {
        "seed": 2,
        "num_inference_steps": 8,
        "strength": 0.8,
        "sampler": "euler_a",
        "negative_prompt": "grey",
        "control": {"edges": (0.5, 0, 1), "depth": (1.1, 0, 0.4)},
    },
]
FOLLOWING_UNION = [
    {"seed": 1, "num_inference_steps": 5, "control": {"pose": (0.9, 0, 1)}},
    {"seed": 2, "num_inference_steps": 6, "guidance_scale": 1.0, "control": {"pose": (1.3, 0.2, 0.7)}},
]
FOLLOWING_AND_WEARING = {"seed": 9, "num_inference_steps": 5, "control": {"edges": (0.8, 0.3, 1)}, "lora": {"ink": 0.8}}
DEFAULT_GUIDANCE = 5.0
# Settings that our server works into a picture and its mask.
DRAWN = ("mask_blur", "extend", "ip_adapter_image", "ip_adapter", "ip_adapter_scale")
FILES = ("init_image", "mask", "ip_adapter_image")


@pytest.fixture(params=SEEDS)
def model(request, tiny, tmp_path):
    """A served tiny model and diffusers' pipelines of the same weights."""
    weights, build = tiny(request.param)
    adapters = tmp_path if request.param in ADAPTERS else None
    with Server(build, http_port=0, grpc_port=0, metrics_port=0, adapters=adapters) as server:
        refiner = refiner_of(weights) if request.param in REFINERS else None
        made = Model(server.addresses.grpc, weights, request.param, refiner)
        if adapters:
            made.load_loras(adapters, loras.layers_of(build))
        made.load_controls(weights)
        yield made


class Model:
    def __init__(self, url, weights, seed, refiner=None):
        self.url, self.seed = url, seed
        self.base = tiny_sdxl.load(weights)
        own = self.base.scheduler
        self.config = {**own.config, "_class_name": type(own).__name__}
        self.default = default_sampler(self.config)[0]
        encoders = (self.base.text_encoder, self.base.text_encoder_2)
        self.most_skipped = min(encoder.config.num_hidden_layers for encoder in encoders) - 1
        self.side = self.base.default_sample_size * self.base.vae_scale_factor
        self.refiner, self.loras, self.controls = None, set(), {}
        if refiner:
            self.refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(
                refiner, dtype=torch.float32, add_watermarker=False
            )
            self.refiner.set_progress_bar_config(disable=True)

    def load_loras(self, folder, layers):
        """Put LoRAs into the server's folder, and into diffusers' pipeline."""
        convolutions = not self.base.unet.config.use_linear_projection
        fitting = [name for name, facts in LORAS.items() if max(facts["ranks"]) < ADAPTERS.get(self.seed, RANK)]
        for number, name in enumerate(fitting):
            tensors = loras.tensors(layers, number, convolutions=convolutions, **LORAS[name])
            (folder / f"{name}.safetensors").write_bytes(loras.pack(tensors))
            self.base.load_lora_weights(folder / f"{name}.safetensors", adapter_name=name)
        self.base.disable_lora()
        self.loras = {*fitting}

    def load_controls(self, weights):
        for name, kind in CONTROLS.get(self.seed, {}).items():
            loaded = ControlNetUnionModel if kind == "union" else ControlNetModel
            self.controls[name] = loaded.from_pretrained(control_of(weights, name)).eval()

    def wear(self, adapters):
        if adapters:
            self.base.enable_lora()
            self.base.set_adapters(list(adapters), list(adapters.values()))
        else:
            self.base.disable_lora()

    def pipeline(self, kind, **more):
        zeros = self.base.config.force_zeros_for_empty_prompt
        made = kind(**self.base.components, **more, force_zeros_for_empty_prompt=zeros, add_watermarker=False)
        made.set_progress_bar_config(disable=True)
        return made

    def assert_like(self, given, theirs):
        answer = plain.grpc(self.url, **_sent(given))
        ours = np.asarray(Image.open(io.BytesIO(answer["image"]))).astype(int)
        difference = np.abs(ours - np.asarray(theirs).astype(int)).max()
        assert difference <= 1, f"seed {self.seed}, {given}: {difference}/255"
        assert ours.std() > 1
        assert ("cut" in answer["receipt"]) == (given["prompt"] == PROMPTS[1])

    def asked(self, number, settings, **more):
        """A request's settings: its prompt, its size, no more layers skipped than there are."""
        skip = {"clip_skip": min(settings["clip_skip"], self.most_skipped)} if "clip_skip" in settings else {}
        return {**settings, **skip, "prompt": PROMPTS[number % 2], **more, **self.sizes(number)}

    def sizes(self, number):
        return {"height": self.side, "width": self.side if number % 3 == 0 else self.side // 2 * 3}

    def scheduler(self, given):
        return scheduler(self.config, given.get("sampler", self.default), given.get("schedule", "default"))

    def run(self, pipeline, given, generator=None, **more):
        """diffusers' call with our names."""
        if self.loras:
            self.wear(given.get("lora"))
        pipeline.scheduler = self.scheduler(given)
        ours = (
            *("seed", "sampler", "schedule", "guidance_end", "denoising_end", "init_image", "mask", "lora", *DRAWN),
            *("control", "control_images"),
        )
        known = {name: value for name, value in given.items() if name not in ours}
        known.setdefault("guidance_scale", DEFAULT_GUIDANCE)
        generator = generator or torch.Generator("cpu").manual_seed(given["seed"])
        return pipeline(generator=generator, **known, **more).images[0]


def _sent(given):
    files = {name: _png(given[name]) for name in FILES if name in given}
    worn = [{"name": name, "scale": scale} for name, scale in given.get("lora", {}).items()]
    adapters = {"lora": json.dumps(worn)} if "lora" in given else {}
    names = ("scale", "start", "end")
    controls = [{"name": name, **dict(zip(names, how, strict=True))} for name, how in given.get("control", {}).items()]
    followed = [_png(image) for image in given.get("control_images", ())]
    control = {"control": json.dumps(controls), "control_images": followed} if controls else {}
    return {"guidance_scale": DEFAULT_GUIDANCE, **given, **files, **adapters, **control}


def _png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def picture(side):
    image = Image.effect_noise((side * 2, side + 32), 80).convert("RGB").filter(ImageFilter.GaussianBlur(2))
    ImageDraw.Draw(image).ellipse((10, 10, side, side), fill=(200, 60, 20))
    return image


def mask(size):
    image = Image.new("L", size)
    ImageDraw.Draw(image).rectangle((size[0] // 4, 9, size[0] - 5, size[1] // 2), fill=255)
    return image


def without_guidance_after(calls):
    """diffusers' own way to end guidance: a callback that drops the unconditional rows."""

    def callback(pipeline, step, _timestep, tensors):
        if step == calls - 1 and pipeline.do_classifier_free_guidance:
            pipeline._guidance_scale = 0.0
            return {name: tensor[-1:] if name != "latents" else tensor for name, tensor in tensors.items()}
        return tensors

    names = ["latents", "prompt_embeds", "add_text_embeds", "add_time_ids"]
    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}


def test_the_served_image_is_diffusers(model):
    for number, settings in enumerate(TEXT):
        given = model.asked(number, settings)
        calls = int(given["num_inference_steps"] * given.get("guidance_end", 1))
        model.assert_like(given, model.run(model.base, given, **without_guidance_after(calls)))
    img2img(model)
    inpaint(model)
    if model.refiner is not None:
        refined(model, REFINED)
    if model.loras:
        worn(model)
    if model.controls:
        following(model)


def following(model):
    for number, settings in with_its_controls(model, FOLLOWING):
        follow(model, model.asked(number, settings), StableDiffusionXLControlNetPipeline, "image")
    if model.loras:
        follow(model, model.asked(0, FOLLOWING_AND_WEARING), StableDiffusionXLControlNetPipeline, "image")
    for number, settings in enumerate(FOLLOWING_UNION if "pose" in model.controls else ()):
        given, kind = model.asked(number, settings), StableDiffusionXLControlNetUnionPipeline
        follow(model, given, kind, "control_image", control_mode=[MODE])
    # diffusers' control pipelines that begin with a picture forget the guidance that a distilled UNet reads.
    reads_guidance = model.base.unet.config.time_cond_proj_dim
    for number, settings in with_its_controls(model, () if reads_guidance else FOLLOWING_PICTURES):
        image = picture(model.side)
        given = model.asked(number, settings, init_image=image)
        resized = image.resize((given["width"], given["height"]), Image.Resampling.LANCZOS)
        follow(model, given, StableDiffusionXLControlNetImg2ImgPipeline, "control_image", image=resized)
        given = {**given, "mask": mask(image.size)}
        pictures = {"image": image, "mask_image": given["mask"]}
        follow(model, given, StableDiffusionXLControlNetInpaintPipeline, "control_image", **pictures)


def with_its_controls(model, asked):
    """Those, numbered, whose controls a model has."""
    return [(number, one) for number, one in enumerate(asked) if one["control"].keys() <= model.controls.keys()]


def follow(model, given, kind, called, **more):
    """diffusers takes one of each where there is one, else lists."""
    names, how = [*given["control"]], [*zip(*given["control"].values(), strict=True)]
    given = {**given, "control_images": [outline(model.side, place) for place in range(len(names))]}
    pipeline = model.pipeline(kind, controlnet=_few([model.controls[name] for name in names]))
    called = {called: _few(given["control_images"])}
    scale, start, end = (_few([*each]) for each in how)
    share = {"control_guidance_start": start, "control_guidance_end": end}
    theirs = model.run(pipeline, given, **more, **called, controlnet_conditioning_scale=scale, **share)
    model.assert_like(given, theirs)


def _few(many):
    return many if len(many) > 1 else many[0]


def outline(side, place):
    """A picture to follow: grey and of another size than what is drawn, or in colours and half transparent."""
    image = Image.new("L", (side + 24, side * 2)) if place == 0 else Image.new("RGBA", (side, side), (30, 200, 90, 99))
    ImageDraw.Draw(image).ellipse((side // 4, 9, side - 9, side - 5), outline="white", width=3)
    return image


def worn(model):
    for number, settings in enumerate(WORN):
        if settings["lora"].keys() <= model.loras:
            given = model.asked(number, settings)
            model.assert_like(given, model.run(model.base, given))
    image = picture(model.side)
    given = model.asked(0, WORN_PICTURE, init_image=image, mask=mask(image.size))
    pipeline = model.pipeline(StableDiffusionXLInpaintPipeline)
    model.assert_like(given, model.run(pipeline, given, image=image, mask_image=given["mask"]))
    if model.refiner is not None:
        refined(model, WORN_REFINED)


def img2img(model):
    for number, settings in enumerate(PICTURE[model.seed % 2 :: 2] if model.seed > 1 else PICTURE):
        size = model.sizes(number)
        given = model.asked(number, settings, init_image=picture(model.side))
        resized = given["init_image"].resize((size["width"], size["height"]), Image.Resampling.LANCZOS)
        theirs = {name: value for name, value in given.items() if name not in size}
        pipeline = model.pipeline(StableDiffusionXLImg2ImgPipeline)
        model.assert_like(given, model.run(pipeline, theirs, image=resized))


def inpaint(model):
    for number, settings in enumerate(MASKED[model.seed % 2 :: 2] if model.seed > 1 else MASKED):
        image = picture(model.side)
        given = model.asked(number, settings, init_image=image, mask=mask(image.size))
        pipeline = model.pipeline(StableDiffusionXLInpaintPipeline)
        model.assert_like(given, model.run(pipeline, given, **canvas(pipeline, given)))


def canvas(pipeline, given):
    """What diffusers' users make of a picture and its mask before they call the pipeline."""
    image, mask = given["init_image"], given.get("mask")
    if (edges := given.get("extend")) is not None:
        left, top, right, bottom = edges
        sides = ((top, bottom), (left, right))
        image = Image.fromarray(np.pad(np.asarray(image), (*sides, (0, 0)), mode="edge"))
        mask = Image.fromarray(np.pad(np.asarray(mask), sides, constant_values=255))
    blur = given.get("mask_blur")
    return {"image": image, "mask_image": pipeline.mask_processor.blur(mask, blur) if blur else mask}


def refined(model, asked):
    for number, settings in enumerate(asked):
        given = model.asked(number, settings)
        if "init_image" in given:
            given["init_image"] = picture(model.side)
        model.assert_like(given, both(model, given))


def both(model, given, base=None, pictures=None):
    """diffusers' two pipelines, latents in between, one generator through both."""
    generator = torch.Generator("cpu").manual_seed(given["seed"])
    scores = {name: given[name] for name in ("aesthetic_score", "negative_aesthetic_score") if name in given}
    end = {"denoising_end": given["denoising_end"], "output_type": "latent"}
    asked = {name: value for name, value in given.items() if name not in scores}
    size = {"height": given["height"], "width": given["width"]}
    if "init_image" in given:
        asked = {name: value for name, value in asked.items() if name not in size}
        image = given["init_image"].resize((size["width"], size["height"]), Image.Resampling.LANCZOS)
        latents = model.run(model.pipeline(StableDiffusionXLImg2ImgPipeline), asked, generator, image=image, **end)
    else:
        latents = model.run(base or model.base, asked, generator, **end, **(pictures or {}))
    refiner = {name: value for name, value in asked.items() if name not in (*size, "strength")}
    start = {"denoising_start": given["denoising_end"], "image": latents[None]}
    return model.run(model.refiner, refiner, generator, **start, **scores)
