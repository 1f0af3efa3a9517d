"""Many different requests at once: few model calls, and every image equals itself made alone."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

from .. import plain

PROMPTS = ["a flat icon of a penguin", "a 3d render of a red apple", "a 3d rocket", "a flat icon of a house"]
STEPS = [4, 50, 20, 5, 30, 10, 50, 8, 20, 20, 4, 12, 33, 7, 9, 41]


def requests():
    choose = random.Random(2)
    return [
        {
            "prompt": choose.choice(PROMPTS),
            "seed": seed,
            "num_inference_steps": steps,
            "guidance_scale": choose.choice([1.0, 4.0, 7.5]),
            "height": [128, 96][seed % 2],
            "width": 128,
            "sampler": choose.choice(["euler", "euler_a", "dpmpp_2m", "unipc"]),
        }
        for seed, steps in enumerate(STEPS)
    ]


def batches(url):
    """Model calls so far, once what other tests left behind has ended."""
    while (stats := plain.verb(url, "stats"))["waiting"] + stats["running"]:
        pass
    return stats["batches_total"]


def test_sixteen_mixed_requests_share_model_calls_and_keep_their_bytes(url):
    before = batches(url)
    alone = [plain.grpc(url, **request)["image"] for request in requests()]
    between = batches(url)
    with ThreadPoolExecutor(len(STEPS)) as pool:
        together = list(pool.map(lambda request: plain.grpc(url, **request)["image"], requests()))
    calls = {"alone": between - before, "together": batches(url) - between}
    assert calls["alone"] == sum(STEPS)
    assert calls["together"] <= 0.4 * calls["alone"], calls
    assert together == alone


def test_prompts_of_other_lengths_run_beside_each_other_and_keep_their_bytes(url):
    long = "(a flat icon:1.2) of a penguin, [red], in the snow, " * 6
    prompts = ["a 3d (rocket:1.4)", f"a house BREAK {long}", long, "a flat icon of a penguin"]
    asked = [
        {
            "prompt": prompts[k % 4],
            "negative_prompt": prompts[(k // 4) % 4],
            "prompt_syntax": ["a1111", "plain"][k % 4 == 3],
            "seed": k,
            "num_inference_steps": 4 + k % 5,
            "guidance_scale": [5.0, 1.0][k % 3 == 0],
        }
        for k in range(16)
    ]
    before = batches(url)
    alone = [plain.grpc(url, **request)["image"] for request in asked]
    between = batches(url)
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda request: plain.grpc(url, **request)["image"], asked))
    assert batches(url) - between < between - before
    assert together == alone
    assert len(set(alone)) == len(alone)


def test_a_short_request_returns_before_a_long_one_that_was_there_first(url):
    ended, stepping = [], threading.Event()

    def long():
        plain.grpc(url, prompt="a 3d rocket", num_inference_steps=50, seed=1, request_id=LONG)
        ended.append("long")

    thread = threading.Thread(target=long)
    thread.start()
    while plain.verb(url, "watch", id=LONG)["step"] < 2:
        stepping.set()
    plain.grpc(url, prompt="a 3d rocket", num_inference_steps=4, seed=2)
    ended.append("short")
    thread.join()
    assert ended == ["short", "long"]


LONG = "6d0b1c1e-6f6c-4b5e-9d5e-0c7f3a1b2c3d"
