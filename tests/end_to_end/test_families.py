"""SDXL and Stable Cascade on one server: nobody's bytes depend on the other, and each says what is wrong in its own words."""

from __future__ import annotations

import base64
import io
import json
import random
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from triptych_demo import demo_build
from triptych_server import Server

from .. import plain

CASCADE = {"model": "stable_cascade", "prompt": "a flat icon of a penguin", "num_inference_steps": 4}
LEGAL, LARGEST = (128, 168, 256), 296
# So long that no stage ends between two questions of a watcher.
LONG = {**CASCADE, "prior_num_inference_steps": 100, "num_inference_steps": 100, "height": LARGEST}
SUBJECTS = ("a red apple", "a penguin", "a rocket", "a house")


@pytest.fixture(scope="module")
def url(tiny_cascade):
    """A server with the demo SDXL and a random tiny Stable Cascade of 168 × 168 pixels."""
    builds = [demo_build("sdxl"), tiny_cascade(0)[1]]
    with Server(builds, http_port=0, grpc_port=0, metrics_port=0, cache_mb=0) as server:
        yield server.addresses.grpc


def mixed_requests(count):
    """Requests of both families, no two alike."""
    choose = random.Random(4)
    requests = []
    for seed in range(count):
        common = {
            "prompt": f"a 3d render of {choose.choice(SUBJECTS)}",
            "seed": seed,
            "num_inference_steps": choose.randint(1, 8),
        }
        if seed % 2:
            guidance = choose.choice([0.0, 1.0, 4.0])
            own = {"guidance_scale": guidance, "height": choose.choice([96, 128]), "sampler": "euler_a"}
            requests.append({"model": "sdxl", **common, **own})
        else:
            own = {
                "prior_num_inference_steps": choose.randint(1, 10),
                "prior_guidance_scale": choose.choice([0.0, 4.0]),
                "decoder_guidance_scale": choose.choice([0.0, 1.5]),
                "height": choose.choice(LEGAL[:2]),
                "width": choose.choice(LEGAL),
            }
            requests.append({"model": "stable_cascade", **common, **own})
    return requests


def test_a_mixed_load_of_both_families_is_byte_equal_to_each_alone(url):
    requests = mixed_requests(40)
    alone = [plain.grpc(url, **request)["image"] for request in requests]
    before = plain.verb(url, "stats")
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda request: plain.grpc(url, **request)["image"], requests))
    after = plain.verb(url, "stats")
    assert together == alone
    assert len(set(alone)) == len(alone)
    batches, rows = (after[name] - before[name] for name in ("batches_total", "rows_total"))
    assert rows > 2.5 * batches  # they did share batches


def test_another_seed_draws_another_picture(url):
    images = [plain.grpc(url, **CASCADE, seed=seed)["image"] for seed in range(3)]
    assert len(set(images)) == 3
    assert plain.grpc(url, **CASCADE, seed=1)["image"] == images[1]


def test_the_file_says_what_made_it(url):
    answer = plain.grpc(url, **CASCADE, seed=4, decoder_guidance_scale=1.5, negative_prompt="grey", width=256)
    image = Image.open(io.BytesIO(answer["image"]))
    receipt = json.loads(image.text["triptych"])
    assert image.size == (256, 168)
    assert {name: receipt[name] for name in ("family", "seed", "decoder_guidance_scale", "num_inference_steps")} == {
        "family": "stable_cascade",
        "seed": 4,
        "decoder_guidance_scale": 1.5,
        "num_inference_steps": 4,
    }
    assert {"prior", "decoder", "vqgan", "cascade_text_encoder"} <= receipt["stages"].keys()
    assert image.text["parameters"].startswith(
        "a flat icon of a penguin\nNegative prompt: grey\nSteps: 20, Sampler: DDPM Wuerstchen, CFG scale: 4, Seed: 4, "
    )
    assert "Decoder steps: 4, Decoder CFG scale: 1.5" in image.text["parameters"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"height": 130}, "height: 130 given; legal: "),
        ({"height": 130}, "the nearest 128 or 168"),
        ({"width": -1}, "width: -1 given"),
        ({"prior_num_inference_steps": 101}, "prior_num_inference_steps: 101 given; legal: 1 … 100"),
        ({"num_inference_steps": 0}, "num_inference_steps: 0 given; legal: 1 … 100"),
        ({"prior_guidance_scale": float("inf")}, "prior_guidance_scale: inf given; legal: 0 … 50"),
        ({"decoder_guidance_scale": 51.0}, "decoder_guidance_scale: 51 given; legal: 0 … 50"),
        ({"prompt": " "}, "prompt: a blank text given"),
        ({"sampler": "euler"}, "sampler"),
        ({"guidance_scale": 4.0}, "guidance_scale"),
    ],
)
def test_what_is_wrong_is_refused_by_name(url, given, words):
    with pytest.raises(InferenceServerException) as error:
        plain.grpc(url, **{**CASCADE, **given})
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert words in error.value.message()


def watched(url, **request):
    """Every state that a watcher is told of a request, and its picture."""
    job, states, since = str(uuid.uuid4()), [], -1
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(plain.grpc, url, job, **request)
        while not states or states[-1]["status"] in ("queued", "running"):
            states.append(plain.verb(url, "watch", id=job, since=since, preview=True))
            since = states[-1]["seq"]
        return states, Image.open(io.BytesIO(future.result()["image"])).convert("RGB")


def test_watching_tells_stage_and_step(url):
    states, _ = watched(url, **LONG)
    stages = [state["stage"] for state in states if state["status"] == "running"]
    assert list(dict.fromkeys(stages)) == ["prior", "decoder"]
    assert all(state["step"] <= 100 for state in states if state["stage"] == "prior")
    assert all(state["step"] >= 100 for state in states if state["stage"] == "decoder")
    assert states[-1]["step"] == states[-1]["num_steps"] == 200


def shown(states, stage):
    """The pictures that came while a stage ran."""
    found = [state["preview"] for state in states if state["stage"] == stage and state["preview"]]
    return [Image.open(io.BytesIO(base64.b64decode(preview))) for preview in found]


def test_a_preview_is_a_picture_that_comes_to_look_like_the_finished_one(url):
    request = {"model": "sdxl", "prompt": "a 3d render of a red apple", "num_inference_steps": 40, "seed": 1}
    states, finished = watched(url, **request)
    last = shown(states, "unet")[-1]
    assert (last.format, last.size) == ("PNG", (16, 16))
    small = np.asarray(finished.resize(last.size, Image.Resampling.BOX), np.float64).ravel()
    assert np.corrcoef(small, np.asarray(last, np.float64).ravel())[0, 1] > 0.6


def test_both_stages_of_cascade_have_previews(url):
    states, _ = watched(url, **LONG)
    (prior,), (decoder,) = ({image.size for image in shown(states, stage)} for stage in ("prior", "decoder"))
    assert prior == (4 * 4, 4 * 7)  # four pixels for each of 4 × 7 latents
    assert decoder == (42, 74)


def test_a_preview_comes_only_where_it_is_asked_for(url):
    job = str(uuid.uuid4())
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(plain.grpc, url, job, model="sdxl", prompt="a house", num_inference_steps=20)
        state = {"status": "queued", "seq": -1}
        while state["status"] == "queued" or (state["status"] == "running" and state["step"] < 2):
            state = plain.verb(url, "watch", id=job, since=state["seq"])
        assert state["preview"] is None
        future.result()


def test_cancel_ends_a_request_in_stage_c(url):
    job = str(uuid.uuid4())
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(plain.grpc, url, job, **LONG)
        state = {"status": "queued", "seq": -1}
        while state["status"] == "queued":
            state = plain.verb(url, "watch", id=job, since=state["seq"])
        assert state["stage"] == "prior"
        assert plain.verb(url, "cancel", id=job)["cancelled"] is True
        with pytest.raises(InferenceServerException, match="cancelled"):
            future.result()


def test_describe_tells_of_both(url):
    models = plain.verb(url, "describe")["models"]
    assert models.keys() == {"sdxl", "stable_cascade"}
    assert models["stable_cascade"]["model"]["default_height"] == 168
    assert {"prior", "decoder"} <= models["stable_cascade"]["stages"].keys()
