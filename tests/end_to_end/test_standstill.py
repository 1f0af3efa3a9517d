"""A machine that stands still for longer than Triton's patience: nothing wrong is served, and service resumes."""

from __future__ import annotations

import asyncio
import io
import time

import psutil
import pytest
from PIL import Image

from triptych import AsyncClient, TriptychError
from triptych_demo import demo_build
from triptych_server import Server
from triptych_server.failures import PATIENCE_LOOKS, Answers, Beats
from triptych_serving.record import Counts

STANDSTILL_S = 1.6  # Triton's patience is a second
REQUESTS = 12


START = io.BytesIO()
Image.linear_gradient("L").convert("RGB").save(START, "PNG")


async def ended(client, seed):
    """The file, or None for a named error."""
    try:
        return (await client.submit("a fox", seed=seed, num_inference_steps=6, init_image=START.getvalue()).get()).data
    except TriptychError:
        return None


async def all_at_once(url, meanwhile=lambda: None):
    async with AsyncClient(url, timeout=60) as client:
        jobs = [asyncio.ensure_future(ended(client, seed)) for seed in range(REQUESTS)]
        await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)  # the others are all on their way
        meanwhile()
        return await asyncio.gather(*jobs)


def stand_still():
    processes = psutil.Process().children(recursive=True)
    for process in processes:
        process.suspend()
    time.sleep(STANDSTILL_S)
    for process in processes:
        process.resume()


@pytest.mark.serial
def test_a_machine_that_stands_still_costs_requests_but_makes_no_wrong_picture():
    with Server(demo_build(), http_port=0, grpc_port=0, metrics_port=0, cache_mb=0) as server:
        url = server.addresses.grpc
        right = asyncio.run(all_at_once(url))
        assert None not in right
        disturbed = asyncio.run(all_at_once(url, stand_still))
        assert not [seed for seed, data in enumerate(disturbed) if data not in (None, right[seed])]
        ends = time.monotonic() + 60
        while asyncio.run(all_at_once(url)) != right:
            assert time.monotonic() < ends, "it does not serve again"


def counts(beats=0, executed=0):
    return {"tokenizer": Counts(beats, executed, owed=0, passed=executed)}


def page(batches):
    return f"""nv_inference_request_failure{{model="tokenizer",reason="BACKEND",version="1"}} 9
nv_inference_exec_count{{model="a_plan_of_tritons_own",version="1"}} 7
nv_inference_exec_count{{model="tokenizer",version="1"}} {batches}
"""


@pytest.mark.parametrize(
    ("ran", "received", "lost"), [(1, 0, ["tokenizer"]), (1, 1, []), (0, 3, []), (3, 2, ["tokenizer"])]
)
def test_an_answer_that_triton_did_not_take_is_seen_at_the_third_look(ran, received, lost):
    answers = Answers()
    assert [answers.lost(counts(executed=ran), page(received)) for _ in range(3)] == [[], [], lost]


def test_an_answer_that_is_still_on_its_way_is_not_lost():
    answers = Answers()
    for batch in range(1, 9):
        assert not answers.lost(counts(executed=batch), page(batch - 1))


def test_a_process_that_stands_still_is_seen_and_one_that_stood_still_is_not():
    beats = Beats()
    for _ in range(2):
        assert not any(beats.stalled(counts(beats=1)) for _ in range(PATIENCE_LOOKS))
        beats.stalled(counts(beats=2))
    assert [beats.stalled(counts(beats=2)) for _ in range(PATIENCE_LOOKS)][-1] == ["tokenizer"]
