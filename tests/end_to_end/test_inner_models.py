"""What a stranger may do at the models inside an ensemble: mistakes are refused in short words, and nothing can be forged."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from triptych.errors import InvalidRequest
from triptych_lab.bench.perf_analyzer.stages import TritonModels, record

from .. import plain
from .test_malformed import stub

ASKED = {"prompt": "a fox", "num_inference_steps": 1, "height": 64, "width": 64, "seed": 1}
MODELS = ("sdxl", "stable_cascade")
IDS, SKIP = np.zeros((1, 24), np.int64), np.zeros((1, 1), np.int64)


def latents(height, width, fill=0.0):
    return np.full((1, 4, height, width), fill, np.float32)


MISTAKES = [
    ("vae_decoder", {"latent_sample": latents(33, 32)}, "latent_sample: latent_height 33 given; legal: 4 … 32"),
    ("vae_decoder", {"latent_sample": latents(4, 512)}, "latent_sample: latent_width 512 given; legal: 4 … 32"),
    ("vae_decoder", {"latent_sample": latents(0, 0)}, "latent_sample: latent_height 0 given; legal: 4 … 32"),
    ("vae_decoder", {"latent_sample": latents(4, 4, np.nan)}, "latent_sample: nan given; legal: finite numbers"),
    ("vqgan", {"latent_sample": latents(8, 65)}, "latent_sample: latent_width 65 given; legal: 8 … 64"),
    ("text_encoder", {"input_ids": IDS + 2000, "clip_skip": SKIP}, "input_ids: 2000 given; legal: 0 … 1999"),
    ("text_encoder", {"input_ids": IDS - 1, "clip_skip": SKIP}, "input_ids: -1 given; legal: 0 … 1999"),
    ("text_encoder", {"input_ids": IDS, "clip_skip": SKIP - 99}, "clip_skip: -99 given; legal: 0 … 2"),
    (
        "text_encoder_2",
        {"input_ids": IDS, "clip_skip": SKIP + 2**62},
        "clip_skip: 4611686018427387904 given; legal: 0 … 3",
    ),
    ("cascade_text_encoder", {"input_ids": IDS, "attention_mask": IDS + 2}, "attention_mask: 2 given; legal: 0 … 1"),
]


@pytest.mark.parametrize(("model", "inputs", "message"), MISTAKES)
def test_a_mistake_at_a_stage_names_tensor_value_and_limits(url, model, inputs, message):
    with pytest.raises(InferenceServerException) as error:
        plain.grpc(url, model=model, **inputs)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert error.value.message().startswith(message)


def test_latents_beyond_the_builds_limits_take_no_memory(url):
    decoder = stub("vae_decoder")
    before = decoder.memory_info().rss
    for side in (256, 512, 256):
        with pytest.raises(InferenceServerException, match="latent_height"):
            plain.grpc(url, model="vae_decoder", latent_sample=latents(side, side))
    assert decoder.memory_info().rss - before < 50e6


def test_a_decoder_on_a_processor_is_given_one_picture_at_a_time(url):
    with pytest.raises(InferenceServerException, match="batch-size must be <= 1"):
        plain.grpc(url, model="vae_decoder", latent_sample=np.concatenate([latents(32, 32)] * 4))


def test_a_mistake_fails_nothing_that_shares_its_batch(url):
    def encoded(ids):
        return TritonModels(url).infer("text_encoder", {"input_ids": ids, "clip_skip": SKIP}, ["hidden_states"])

    alone = encoded(IDS + 7)["hidden_states"]
    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(encoded, IDS + ids) for k in range(20) for ids in (k + 8, -1, 7)]
    assert [call.exception() is None for call in sent] == [True, False, True] * 20
    assert all(np.array_equal(call.result()["hidden_states"], alone) for call in sent[2::3])


def walked(url, model="sdxl", **changes):
    """What each model of an ensemble reads for a request, by model and input."""
    return {step.model: dict(step.inputs) for step in record(TritonModels(url), model, {**ASKED, **changes})}


def refused(url, model, inputs):
    """The fields that a model finds wrong."""
    outputs = {"denoise": "latents", "image_encoder": "image", "vae_encoder": "picture"}
    with pytest.raises(InvalidRequest) as error:
        TritonModels(url).infer(model, inputs, [outputs[model]])
    assert len(str(error.value)) < 300
    return {problem.field for problem in error.value.problems}


def forged(settings, **changes):
    """Signed settings with something changed."""
    code, document = settings[0][:32], json.loads(settings[0][32:])
    document["settings"] |= changes
    return np.array([code + json.dumps(document).encode()], np.object_)


@pytest.mark.parametrize("reader", ["vae_encoder", "denoise", "image_encoder"])
@pytest.mark.parametrize(
    "changes", [{"num_inference_steps": 2.5}, {"guidance_scale": float("nan")}, {"prompt": "a bear"}, {"seed": 2}, {}]
)
def test_settings_that_the_server_did_not_sign_are_refused(url, reader, changes):
    inputs = walked(url)[reader]
    unsigned = np.array([inputs["settings"][0][32:]], np.object_)
    assert refused(
        url, reader, {**inputs, "settings": forged(inputs["settings"], **changes) if changes else unsigned}
    ) == {"settings"}
    assert refused(url, reader, {**inputs, "settings": np.array([b"[" * 100_000], np.object_)}) == {"settings"}


@pytest.mark.parametrize("model", MODELS)
def test_another_pictures_pixels_cannot_be_the_answer(url, model):
    mine, other = (walked(url, model, prompt=prompt)["image_encoder"] for prompt in ("a fox", "a bear"))
    (proof,) = (name for name in mine if name.endswith("_proof"))
    assert refused(url, "image_encoder", {**mine, "sample": other["sample"]}) == {"sample"}
    assert refused(url, "image_encoder", {**mine, "sample": other["sample"], proof: other[proof]}) == {"sample"}
    assert refused(url, "image_encoder", {**other, "settings": mine["settings"]}) == {"report"}
    without = {name: array for name, array in mine.items() if name != proof}
    assert refused(url, "image_encoder", without) == {"sample"}
    assert refused(url, "image_encoder", {**mine, "report": mine["settings"]}) == {"report"}
    assert refused(url, "image_encoder", {**mine, "sample": mine["sample"][:, :32]}) == {"sample"}


@pytest.mark.parametrize("model", MODELS)
def test_another_prompts_embeddings_cannot_be_drawn_as_this_ones(url, model):
    mine, other = (walked(url, model, prompt=prompt)["denoise"] for prompt in ("a fox", "a bear"))
    for name in ("hidden_states", "text_embeds"):
        assert refused(url, "denoise", {**mine, name: other[name]}) == {name}
    embeddings = {name: array for name, array in other.items() if name != "settings"}
    assert refused(url, "denoise", {**mine, **embeddings}) <= {"hidden_states", "text_embeds"}


def test_another_requests_weights_cannot_be_these(url):
    mine, other = (
        walked(url, prompt="a fox", negative_prompt="a (grey:1.3) bear", prompt_syntax=syntax)["denoise"]
        for syntax in ("plain", "a1111")
    )
    weights = other["token_weights"]
    assert weights.max() > 1
    for wrong in (weights, mine["token_weights"] * np.float32(np.nan), mine["token_weights"][:1]):
        assert refused(url, "denoise", {**mine, "token_weights": wrong}) == {"token_weights"}
    assert refused(url, "denoise", {n: a for n, a in mine.items() if n != "token_weights"}) == {"token_weights"}


def test_another_picture_cannot_be_begun_with_as_this_one(url):
    first, second = (plain.grpc(url, **{**ASKED, "seed": seed})["image"] for seed in (1, 2))
    mine, other = (walked(url, init_image=image, mask=image, strength=1.0) for image in (first, second))
    given = {**mine["denoise"], "picture": other["denoise"]["picture"]}
    assert refused(url, "denoise", given) == {"picture"}
    for name in ("init_image", "mask"):
        swapped = {**mine["vae_encoder"], name: other["vae_encoder"][name]}
        made = TritonModels(url).infer("vae_encoder", swapped, ["picture"])
        assert refused(url, "denoise", {**mine["denoise"], **made}) == {name}
