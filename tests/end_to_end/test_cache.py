"""Identical requests: the same bytes at once, for the tenant who asked, as long as the cache is on."""

from __future__ import annotations

import contextlib
import statistics
import urllib.request

import numpy as np
import pytest

from triptych.errors import InvalidRequest
from triptych_demo import demo_build
from triptych_lab.bench.perf_analyzer.stages import TritonModels, record
from triptych_server import Server

from .. import plain

ASKED = {"prompt": "a flat icon of a penguin", "num_inference_steps": 8, "seed": 5}


@pytest.fixture(scope="module")
def caching():
    with Server(demo_build(), http_port=0, grpc_port=0, metrics_port=0, cache_mb=8) as server:
        yield server.addresses


def calls(at):
    return plain.verb(at.grpc, "stats")["batches_total"]


def test_the_second_of_two_identical_requests_makes_no_model_call(caching):
    first, before = plain.grpc(caching.grpc, **ASKED), calls(caching)
    second = plain.grpc(caching.grpc, **ASKED)
    assert (first["receipt"]["cached"], second["receipt"]["cached"]) == (False, True)
    assert second["image"] == first["image"]
    assert second["seed"] == first["seed"]
    assert calls(caching) == before
    assert plain.verb(caching.grpc, "stats")["cached_total"] >= 1
    told = {name: value for name, value in first["receipt"].items() if name not in ("timings", "cached")}
    assert told.items() <= second["receipt"].items()


def test_a_hit_takes_a_fraction_of_the_time(caching):
    first = plain.grpc(caching.grpc, **{**ASKED, "seed": 77})["receipt"]["timings"]["total_ms"]
    hits = [plain.grpc(caching.grpc, **{**ASKED, "seed": 77})["receipt"]["timings"]["total_ms"] for _ in range(5)]
    assert statistics.median(hits) < first / 4


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 6},
        {"guidance_scale": 4.5},
        {"output_format": "webp"},
        {"tenant": "another"},
        {"prompt": "a flat icon of a penguin "},
        {"clip_skip": 1},
        {"original_size": (64, 64)},
    ],
)
def test_anything_else_is_made_anew(caching, change):
    plain.grpc(caching.grpc, **ASKED)
    assert not plain.grpc(caching.grpc, **{**ASKED, **change})["receipt"]["cached"]


def test_what_the_bytes_do_not_depend_on_does_not_miss(caching):
    first = plain.grpc(caching.grpc, **ASKED)
    second = plain.grpc(caching.grpc, **ASKED, deadline_ms=60_000, cancel_on_disconnect=False)
    assert second["receipt"]["cached"]
    assert second["image"] == first["image"]


def test_without_a_seed_every_picture_is_a_new_one(caching):
    asked = {name: value for name, value in ASKED.items() if name != "seed"}
    made = [plain.grpc(caching.grpc, **asked) for _ in range(3)]
    assert not any(answer["receipt"]["cached"] for answer in made)
    assert len({answer["image"] for answer in made}) == 3


def test_a_picture_belongs_to_the_question(caching):
    start = plain.grpc(caching.grpc, **ASKED)["image"]
    other = plain.grpc(caching.grpc, **{**ASKED, "seed": 8})["image"]
    asked = {**ASKED, "strength": 0.5}
    first = plain.grpc(caching.grpc, **asked, init_image=start)
    assert plain.grpc(caching.grpc, **asked, init_image=start)["image"] == first["image"]
    assert plain.grpc(caching.grpc, **asked, init_image=start)["receipt"]["cached"]
    assert not plain.grpc(caching.grpc, **asked, init_image=other)["receipt"]["cached"]


def test_nobody_can_put_a_picture_into_the_cache_as_the_answer_to_another_question(caching):
    models, asked = TritonModels(caching.grpc), {**ASKED, "seed": 55}
    steps = {step.model: dict(step.inputs) for step in record(models, "sdxl", {**asked, "height": 32, "width": 32})}
    first = plain.grpc(caching.grpc, **asked)["image"]
    hit = {step.model: dict(step.inputs) for step in record(models, "sdxl", asked)}["image_encoder"]
    assert models.infer("image_encoder", hit, ["image"])["image"][0] == first
    for forged in (
        {**steps["image_encoder"], "settings": hit["settings"]},
        {**hit, "cached": steps["image_encoder"]["cached"]},  # its latents are the smallest there are
        {**hit, "cached": np.array([b"another file"], np.object_)},
    ):
        with contextlib.suppress(InvalidRequest):
            models.infer("image_encoder", forged, ["image"])
        again = plain.grpc(caching.grpc, **asked)
        assert (again["receipt"]["cached"], again["image"] == first) == (True, True)


def test_off_means_off(url):
    first, second = (plain.grpc(url, **ASKED) for _ in range(2))
    assert not second["receipt"]["cached"]
    assert first["image"] == second["image"]


def test_the_same_prompt_is_encoded_once(caching):
    prompt = "a 3d render of a rocket that no other test asks for"
    before = hits(caching)
    for seed in range(3):
        plain.grpc(caching.grpc, prompt=prompt, num_inference_steps=1, seed=seed)
    assert hits(caching) - before == 2 * 2  # two encoders, two of three requests


def hits(at):
    with urllib.request.urlopen(at.metrics) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("nv_cache_num_hits_per_model"))
