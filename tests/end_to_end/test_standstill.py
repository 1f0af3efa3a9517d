"""A machine that stands still for longer than Triton's patience: nothing wrong is served, and service resumes."""

from __future__ import annotations

import asyncio
import io
import queue
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from PIL import Image

from triptych import AsyncClient, Client, TriptychError
from triptych_demo import demo_build
from triptych_server import Server, State
from triptych_server.failures import ENDED_S, GIVEN_UP_S, LOOK_S, RECENT_S, TOLD_S, Answers, Stalls
from triptych_server.supervisor import prepare
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


# Appended to a model: calls that do not end, as long as a file is there.
ENDLESS = """
import os, threading
_answer = TritonPythonModel._answer

def _hang(self, request):
    if os.path.exists({gate!r}):
        threading.Event().wait()
    return _answer(self, request)

TritonPythonModel._answer = _hang
"""


@pytest.mark.serial
def test_a_call_that_does_not_end_is_told_and_its_process_replaced_while_the_caller_waits(tmp_path):
    gate, told = tmp_path / "gate", queue.SimpleQueue()

    def with_endless_calls(builds, repository):
        prepare(builds, repository)
        with (repository / "image_encoder/1/model.py").open("a") as code:
            code.write(ENDLESS.format(gate=str(gate)))

    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with (
        Server(demo_build(), cache_mb=0, on_event=told.put, prepare=with_endless_calls, **ports) as server,
        Client(server.addresses.grpc, timeout=120) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        right = client.generate("a fox", seed=1, num_inference_steps=2, use_cache=False).data
        gate.touch()
        asked = pool.submit(client.generate, "a fox", seed=1, num_inference_steps=2, use_cache=False)
        while "takes over 2 s for one call; it is ended after 10 s" not in told.get(timeout=60).text:
            pass
        gate.unlink()
        event = told.get(timeout=60)
        assert (event.state, "'image_encoder' takes over 10 s" in event.text) == (State.REPLACING, True)
        assert asked.result().data == right


def counts(beats=0, executed=0, **work):
    return {"tokenizer": Counts(beats, executed, owed=0, passed=executed, **work)}


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


def test_answers_of_a_process_before_count_for_nobody():
    answers = Answers()
    for _ in range(3):
        assert not answers.lost(counts(executed=5), page(5))
    answers.begin_anew("tokenizer", page(6))
    for _ in range(3):
        assert not answers.lost(counts(executed=1), page(7))
    assert [answers.lost(counts(executed=2), page(7)) for _ in range(3)] == [[], [], ["tokenizer"]]


class Watched:
    """Looks at one process, one after the other."""

    def __init__(self):
        self.stalls, self.told, self.ended = Stalls(), [], []

    def look(self, seconds, **noted):
        """Look for so long at what is the same all the time, once at what changes each time."""
        for look in range(round(seconds / LOOK_S)):
            told, ended = self.stalls.look(counts(**{name: value(look) for name, value in noted.items()}))
            self.told += told
            self.ended += ended.values()


def test_a_process_that_stands_still_is_told_soon_and_ended_late():
    watched = Watched()
    watched.look(TOLD_S, beats=lambda _: 1)
    assert not watched.told
    watched.look(ENDED_S - TOLD_S, beats=lambda _: 1)
    assert watched.told == ["the process of model 'tokenizer' stands still; it is ended after 10 s"]
    assert not watched.ended
    watched.look(LOOK_S, beats=lambda _: 1)
    assert watched.ended == ["the process of model 'tokenizer' stands still"]


def test_a_process_is_known_to_have_stood_still_for_a_while_and_then_no_more():
    watched = Watched()
    watched.look(GIVEN_UP_S, beats=lambda _: 1)
    assert not watched.stalls.stood_still("tokenizer")
    watched.look(LOOK_S, beats=lambda _: 1)
    watched.look(RECENT_S, beats=lambda look: 2 + look)
    assert watched.stalls.stood_still("tokenizer")
    watched.look(2 * LOOK_S, beats=lambda look: 99 + look)
    assert not watched.stalls.stood_still("tokenizer")


def test_a_process_that_goes_on_is_not_ended():
    watched = Watched()
    for beat in range(3):
        watched.look(ENDED_S, beats=lambda _, beat=beat: beat)
    watched.look(3 * ENDED_S, beats=lambda look: 10 + look)
    assert not watched.ended
    assert len(watched.told) == 3


def test_one_call_that_does_not_end_is_told_and_then_ended():
    def at_work(number):
        return {"beats": lambda look: look, "work": lambda _: number, "allowed_ms": lambda _: 2000}

    watched = Watched()
    watched.look(20, beats=lambda look: look)
    for number in range(1, 9):
        watched.look(1.9, **at_work(number))
    assert not watched.told
    watched.look(9.9, **at_work(9))
    assert watched.told == ["model 'tokenizer' takes over 2 s for one call; it is ended after 10 s"]
    assert not watched.ended
    watched.look(0.2, **at_work(9))
    assert watched.ended == ["model 'tokenizer' takes over 10 s for one call"]
