"""Bad input over gRPC and HTTP: the right code, the field, the range, at once, and the next request works."""

from __future__ import annotations

import time

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from .. import plain

GOOD = {"prompt": "a flat icon of a penguin", "num_inference_steps": 1, "seed": 1}
WITHIN_SECONDS = 0.1
TRIES = 3

BAD = {
    "no inputs": ({}, "prompt"),
    "no prompt": ({"seed": 1}, "prompt: nothing given"),
    "empty prompt": ({"prompt": ""}, "prompt: an empty text given; legal: a text that is not blank"),
    "blank prompt": ({"prompt": " \t\n"}, "prompt: a blank text given"),
    "5 MB prompt": ({"prompt": "x" * 5_000_000}, "prompt: 5000000 bytes given; legal: at most 16384 bytes"),
    "not UTF-8": ({"prompt": b"a \xff fox"}, "prompt: byte 0xff at 2 given; legal: UTF-8 text"),
    "NUL": ({"prompt": "a\0b"}, "prompt: control character U+0000 at 1"),
    "ANSI": ({"prompt": "\x1b[2Jx"}, "prompt: control character U+001B"),
    "negative prompt not UTF-8": ({"negative_prompt": b"\xc3"}, "negative_prompt: byte 0xc3"),
    "0 steps": ({"num_inference_steps": 0}, "num_inference_steps: 0 given; legal: 1 … 100"),
    "-1 steps": ({"num_inference_steps": -1}, "num_inference_steps: -1 given; legal: 1 … 100"),
    "101 steps": ({"num_inference_steps": 101}, "num_inference_steps: 101 given; legal: 1 … 100"),
    "2³¹−1 steps": ({"num_inference_steps": 2**31 - 1}, "num_inference_steps: 2147483647 given"),
    "height 0": ({"height": 0}, "height: 0 given; legal: multiples of 32 from 32 to 256, the nearest 32"),
    "height -8": ({"height": -8}, "height: -8 given"),
    "odd width": ({"width": 101}, "width: 101 given; legal: multiples of 32 from 32 to 256, the nearest 96 or 128"),
    "wide": ({"width": 4096}, "width: 4096 given; legal: multiples of 32 from 32 to 256, the nearest 256"),
    "NaN guidance": ({"guidance_scale": float("nan")}, "guidance_scale: nan given; legal: 0 … 50"),
    "infinite guidance": ({"guidance_scale": float("inf")}, "guidance_scale: inf given; legal: 0 … 50"),
    "negative guidance": ({"guidance_scale": -1.0}, "guidance_scale: -1.0 given; legal: 0 … 50"),
    "unknown sampler": ({"sampler": "__import__('os')"}, "sampler: \"__import__('os')\" given; legal: ddim"),
    "path as sampler": ({"sampler": "../../etc/passwd"}, "sampler: '../../etc/passwd' given; legal: ddim"),
    "illegal pair": ({"sampler": "ddim", "schedule": "karras"}, "schedule: 'karras' given; legal: default"),
    "negative seed": ({"seed": -1}, "seed: -1 given; legal: 0 … 9223372036854775807"),
    "unknown format": ({"output_format": "gif"}, "output_format: 'gif' given; legal: png, jpeg, webp"),
    "no time": ({"deadline_ms": 0}, "deadline_ms: 0 given; legal: 1"),
    "long tenant": ({"tenant": "t" * 1000}, "tenant: 1000 bytes given; legal: at most 128"),
    "wrong dtype": ({"num_inference_steps": np.array([4.5], np.float32)}, "num_inference_steps"),
    "wrong rank": ({"seed": np.array([[1, 2]], np.int64)}, "seed"),
    "two prompts": ({"prompt": np.array([b"a", b"b"], np.object_)}, "prompt"),
    "unknown input": ({"colour": np.array([b"red"], np.object_)}, "colour"),
}


def given(name):
    change = BAD[name][0]
    return change if name in ("no inputs", "no prompt") else {"prompt": "a fox", **change}


def over_grpc(demo, **inputs):
    return plain.grpc(demo.grpc, **inputs)


def over_http(demo, **inputs):
    return plain.http(demo.http.removeprefix("http://"), **inputs)


@pytest.mark.parametrize("send", [over_grpc, over_http])
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name_and_at_once(demo, send, name):
    times = []
    for _ in range(TRIES):  # the fastest: other work on this machine is not the server's
        began = time.monotonic()
        with pytest.raises(InferenceServerException) as error:
            send(demo, **given(name))
        times.append(time.monotonic() - began)
    assert error.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")
    assert BAD[name][1] in error.value.message()
    assert len(error.value.message()) < 500
    assert min(times) < WITHIN_SECONDS


@pytest.mark.parametrize("send", [over_grpc, over_http])
def test_the_next_request_works(demo, send):
    assert send(demo, **GOOD)["image"].startswith(b"\x89PNG")


def test_a_stranger_cannot_spoil_the_loop_with_embeddings_of_another_shape(demo):
    settings = np.array([b'{"settings": {}, "arrived": 0}'], np.object_)
    for inputs in ({"settings": settings}, {"settings": np.array([b"not JSON"], np.object_)}, {}):
        with pytest.raises(InferenceServerException) as error:
            plain.grpc(demo.grpc, model="denoise", **inputs)
        assert error.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"action": "explode"}, "action: 'explode' given; legal: cancel, stats, watch"),
        ({"action": "watch"}, "id: '' given; legal: the UUID"),
        ({"action": "cancel", "id": "1"}, "id: '1' given; legal: the UUID"),
        ({"action": "cancel", "id": "x" * 100_000}, "id: "),
    ],
)
def test_bad_verbs_are_refused(demo, inputs, message):
    with pytest.raises(InferenceServerException) as error:
        plain.verb(demo.grpc, **inputs)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert message in error.value.message()
    assert len(error.value.message()) < 500
