"""Tensors that no client library would send, at every model: they are refused, and nobody else notices."""

from __future__ import annotations

import queue
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil
import pytest
from tritonclient.utils import InferenceServerException

from triptych_demo import demo_build, demo_builds
from triptych_server import Server, State

from .. import plain
from . import malformed
from .malformed import BAD_BYTES, GOOD, bystanders, inputs_of, kinds, over_grpc, over_http


@pytest.fixture(scope="module")
def events():
    return []


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "triton.log"


@pytest.fixture(scope="module")
def server(events, log):
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with Server(demo_builds(), **ports, cache_mb=0, on_event=events.append, log=log) as server:
        yield server


@pytest.fixture(scope="module")
def models(server):
    return inputs_of(server)


def negative(tensors):
    """Triton's HTTP reader calls a negative size a mistake of its own, INTERNAL."""
    return any(-1 in shape for _, shape, _ in tensors.values())


def test_malformed_tensors_are_refused_at_every_model_and_nobody_else_notices(server, events, models):
    wrong = []
    with bystanders(server.addresses.grpc):
        for model, inputs in models.items():
            for _, tensors in kinds(inputs):
                code, status = over_grpc(server, model, tensors), over_http(server, model, tensors)
                if code != grpc.StatusCode.INVALID_ARGUMENT or status != (500 if negative(tensors) else 400):
                    wrong.append((model, code, status, tensors))
    assert not wrong
    assert undisturbed(events)


def undisturbed(events):
    return not {event.state for event in events} & {State.REPLACING, State.RESTARTING}


def test_a_hundred_malformed_tensors_at_once_restart_nothing(server, events):
    bad = {"prompt": ("BYTES", [1], BAD_BYTES["longer than its data"])}
    with bystanders(server.addresses.grpc), ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(lambda _: over_grpc(server, "sdxl", bad), range(100)))
    assert set(codes) == {grpc.StatusCode.INVALID_ARGUMENT}
    assert undisturbed(events)


def test_a_storm_of_what_is_no_request_at_all_disturbs_nobody(server, events):
    with bystanders(server.addresses.grpc):
        codes = {name: malformed.send_frame(server, frame) for name, frame in malformed.FRAMES.items()}
        statuses = {name: malformed.send_body(server, "sdxl", *body) for name, body in malformed.HTTP.items()}
        malformed.hang_up(server)
    assert None not in codes.values()
    assert {status for name, status in statuses.items() if status not in range(400, 600)} == set()
    assert undisturbed(events)


def test_what_callers_say_is_in_no_log_and_no_metric(server, log):
    secrets = {"prompt": "a fox in Xanadu", "negative_prompt": "Xanadu", "tenant": "Xanadu"}
    plain.grpc(server.addresses.grpc, **{**GOOD, **secrets})
    for wrong in ({"sampler": "Xanadu"}, {"init_image": b"Xanadu"}, {"num_inference_steps": 0}):
        with pytest.raises(InferenceServerException):
            plain.grpc(server.addresses.grpc, **{**GOOD, **secrets, **wrong})
    with urllib.request.urlopen(server.addresses.metrics) as page:
        assert b"Xanadu" not in page.read()
    assert "Started GRPCInferenceService" in log.read_text()
    assert "Xanadu" not in log.read_text()


def stub(model):
    """The process of a model of the newest server."""
    mine = [p for p in psutil.Process().children(recursive=True) if f"/{model}/1/model.py" in " ".join(p.cmdline())]
    return max(mine, key=psutil.Process.create_time)


def ordinary_errors(url):
    """Errors that the loop answers itself."""
    for _ in range(15):
        with pytest.raises(InferenceServerException):
            plain.verb(url, "explode")


def test_a_loop_that_stands_still_is_noticed_after_any_number_of_ordinary_errors():
    told = queue.SimpleQueue()
    with (
        Server(demo_build(), http_port=0, grpc_port=0, metrics_port=0, on_event=told.put) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        ordinary_errors(server.addresses.grpc)
        job = str(uuid.uuid4())
        owed = pool.submit(
            plain.grpc, server.addresses.grpc, job, prompt="a fox", num_inference_steps=100, height=256, width=256
        )
        plain.verb(server.addresses.grpc, "watch", id=job)
        stub("denoise").suspend()
        assert "model 'denoise' stands still" in next_event(told, State.RESTARTING).text
        assert owed.exception(timeout=60)
        next_event(told, State.READY)
        assert plain.grpc(server.addresses.grpc, **GOOD)["image"]


def test_a_process_that_triton_has_given_up_is_replaced_after_any_number_of_ordinary_errors():
    told = queue.SimpleQueue()
    with (
        Server(demo_build(), http_port=0, grpc_port=0, metrics_port=0, cache_mb=0, on_event=told.put) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        ordinary_errors(server.addresses.grpc)
        tokenizer = stub("tokenizer")
        tokenizer.suspend()
        given_up = pool.submit(plain.grpc, server.addresses.grpc, **GOOD)
        assert "not healthy" in str(given_up.exception(timeout=60))
        tokenizer.resume()
        # Triton has freed what the process still works on: it may end by that before the lost answer is noticed.
        assert "model 'tokenizer'" in next_event(told, State.REPLACING, State.RESTARTING).text
        next_event(told, State.READY)
        assert plain.grpc(server.addresses.grpc, **GOOD)["image"]


def next_event(told, *states):
    while (event := told.get(timeout=60)).state not in states:
        pass
    return event
