"""Prompts in A1111's syntax: the pictures are diffusers' with the embeddings that A1111's documents and compel make."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from compel import CompelForSDXL
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline
from PIL import Image

from triptych_server import Server

from .. import plain
from ..tiny_builds import REFINERS, refiner_of
from .test_sdxl import Model, mask, picture

LONG = "fox, apple. " * 20  # four tokens each: more than a chunk, and eight chunks of 22 hold it twice
# Prompts as people write them, and what they say: sections of texts with their weights.
READ = {
    "a (red:6) [apple], ((shiny))": [[("a ", 1), ("red", 6), (" ", 1), ("apple", 1 / 1.1), (", ", 1), ("shiny", 1.21)]],
    "a rocket BREAK (in (deep:3) snow:2)": [[("a rocket", 1)], [("in ", 2), ("deep", 6), (" snow", 2)]],
    f"{LONG}(red:5) {LONG}": [[(LONG, 1), ("red", 5), (f" {LONG}", 1)]],
    "grey, (blurred:-4)": [[("grey, ", 1), ("blurred", -4)]],
    r"\(grey\)": [[("(grey)", 1)]],
    "": [[]],
}
WEIGHTED, SECTIONS, CHUNKS, NEGATIVE, ESCAPED, EMPTY = READ
ASKED = [
    {"prompt": WEIGHTED, "negative_prompt": NEGATIVE, "guidance_scale": 5.0},
    {"prompt": SECTIONS, "guidance_scale": 1.0, "clip_skip": 1},
    {"prompt": CHUNKS, "negative_prompt": ESCAPED, "guidance_scale": 4.0, "sampler": "euler_a"},
    {"prompt": WEIGHTED, "negative_prompt": CHUNKS, "guidance_scale": 3.0},
    {"prompt": SECTIONS, "negative_prompt": EMPTY, "guidance_scale": 6.0},
]
COMPELS = ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds")


@pytest.fixture(scope="module", params=REFINERS)
def model(request, tiny):
    weights, build = tiny(request.param)
    with Server(build, http_port=0, grpc_port=0, metrics_port=0) as server:
        yield Model(server.addresses.grpc, weights, request.param, refiner_of(weights))


def chunks(tokenizer, prompt):
    """The rows of ids and weights of a prompt, each of as many tokens as the encoder takes."""
    begin, end, *pad = tokenizer("", padding="max_length").input_ids
    rows = []
    for section in READ[prompt]:
        tokens = [(id, w) for text, w in section for id in tokenizer(text, add_special_tokens=False).input_ids]
        for at in range(0, max(1, len(tokens)), len(pad)):
            ids, weights = zip(*tokens[at : at + len(pad)], strict=True) if tokens else ((), ())
            fill = len(pad) - len(ids)
            rows.append(([begin, *ids, end, *pad[:fill]], [1, *weights, *[1] * (1 + fill)]))
    empty = ([begin, end, *pad], [1] * (2 + len(pad)))
    return rows, empty


def embedded(encoders, prompts, skips):
    """Each prompt's hidden states, weighted, one encoder's beside the other's, and the pooled one of its first chunk."""
    read = {(k, p): chunks(tokenizer, p) for k, (tokenizer, _) in enumerate(encoders) for p in prompts}
    most = max(len(rows) for rows, _ in read.values())
    made = []
    for prompt, skip in zip(prompts, skips, strict=True):
        states = []
        for k, (_, encoder) in enumerate(encoders):
            rows, empty = read[k, prompt]
            ids, weights = (torch.tensor(of) for of in zip(*rows, *[empty] * (most - len(rows)), strict=True))
            with torch.inference_mode():
                output = encoder(ids, output_hidden_states=True)
            states.append((output.hidden_states[-(skip + 2)] * weights[..., None]).flatten(0, 1))
        made += [torch.cat(states, dim=-1)[None], output[0][:1]]  # pooled: the last encoder's
    return dict(zip(COMPELS, made, strict=False))


def encoders(pipeline):
    both = [(pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2)]
    return [(tokenizer, encoder) for tokenizer, encoder in both if encoder is not None]


def assert_like(model, given, theirs):
    files = {}
    for name in ("init_image", "mask"):
        if name in given:
            given[name].save(file := io.BytesIO(), "PNG")
            files[name] = file.getvalue()
    ours, as_plain = (drawn(model, {**given, **files}, syntax) for syntax in ("a1111", "plain"))
    assert np.abs(ours - np.asarray(theirs).astype(int)).max() <= 1, given
    assert np.abs(ours - as_plain).max() > 3  # what the syntax is about is seen


def drawn(model, given, syntax):
    answer = plain.grpc(model.url, **given, prompt_syntax=syntax)
    assert answer["receipt"]["prompt_syntax"] == syntax
    return np.asarray(Image.open(io.BytesIO(answer["image"]))).astype(int)


def asked(model, number, settings):
    given = {**settings, "seed": number, "num_inference_steps": 5, **model.sizes(number)}
    if "clip_skip" in given:
        given["clip_skip"] = min(given["clip_skip"], model.most_skipped)
    return given


def call(given, encoders_):
    """The call of diffusers with embeddings in the place of prompts."""
    prompts = [given["prompt"], *([given["negative_prompt"]] if given["guidance_scale"] > 1 else [])]
    made = embedded(encoders_, prompts, [given.get("clip_skip", 0), 0][: len(prompts)])
    rest = {name: value for name, value in given.items() if name not in ("prompt", "negative_prompt", "clip_skip")}
    return {**rest, **made}


@pytest.mark.parametrize("number", range(len(ASKED)))
def test_weights_breaks_and_long_prompts_are_what_a1111_documents(model, number):
    given = asked(model, number, ASKED[number])
    assert_like(model, given, model.run(model.base, call(given, encoders(model.base))))


def test_pictures_masks_and_the_refiner_read_them_too(model):
    image = picture(model.side)
    started = asked(model, 0, {**ASKED[0], "init_image": image, "strength": 0.7})
    size = started["width"], started["height"]
    theirs = {
        name: value for name, value in call(started, encoders(model.base)).items() if name not in ("height", "width")
    }
    resized = image.resize(size, Image.Resampling.LANCZOS)
    assert_like(model, started, model.run(model.pipeline(StableDiffusionXLImg2ImgPipeline), theirs, image=resized))

    masked = asked(model, 1, {**ASKED[2], "init_image": image, "mask": mask(image.size), "strength": 0.8})
    pipeline = model.pipeline(StableDiffusionXLInpaintPipeline)
    theirs = model.run(pipeline, call(masked, encoders(model.base)), image=image, mask_image=masked["mask"])
    assert_like(model, masked, theirs)

    refined = asked(model, 2, {**ASKED[2], "denoising_end": 0.6, "sampler": "euler"})
    generator = torch.Generator("cpu").manual_seed(refined["seed"])
    latents = model.run(
        model.base, call(refined, encoders(model.base)), generator, denoising_end=0.6, output_type="latent"
    )
    rest = {k: v for k, v in call(refined, encoders(model.refiner)).items() if k not in ("height", "width")}
    assert_like(model, refined, model.run(model.refiner, rest, generator, denoising_start=0.6, image=latents[None]))


def test_a_long_prompt_without_weights_is_compels(model):
    given = asked(model, 3, {"prompt": 2 * LONG, "negative_prompt": "grey", "guidance_scale": 5.0})
    made = CompelForSDXL(model.base)(2 * LONG, negative_prompt="grey")
    embeds = (made.embeds, made.pooled_embeds, made.negative_embeds, made.negative_pooled_embeds)
    rest = {name: value for name, value in given.items() if "prompt" not in name}
    assert made.embeds.shape[1] > model.base.tokenizer.model_max_length
    assert_like(model, given, model.run(model.base, {**rest, **dict(zip(COMPELS, embeds, strict=True))}))
