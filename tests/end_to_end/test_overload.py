"""A burst beyond the queue's limit: refused at once with an estimate, and what was accepted is served."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tritonclient.utils import InferenceServerException

from triptych import Client, Overloaded
from triptych_demo import demo_build
from triptych_server import Server
from triptych_server.supervisor import prepare

from .. import plain

pytestmark = pytest.mark.serial

REQUEST = {"prompt": "a 3d rocket", "num_inference_steps": 10, "height": 256, "width": 256}


@pytest.fixture(scope="module")
def small_queue():
    """A server whose queue holds two seconds of work."""

    def with_limit(builds, repository):
        prepare(builds, repository)
        config = repository / "denoise/config.pbtxt"
        text = config.read_text()
        assert 'string_value: "600"' in text
        config.write_text(text.replace('string_value: "600"', 'string_value: "2"'))

    with Server(demo_build(), http_port=0, grpc_port=0, metrics_port=0, prepare=with_limit) as server:
        plain.grpc(server.addresses.grpc, **REQUEST)  # from here on the estimate knows a step's time
        yield server.addresses.grpc


def attempt(url, seed):
    """How a request ended, and after how long."""
    began = time.monotonic()
    try:
        ended = plain.grpc(url, seed=seed, **REQUEST)["seed"]
    except InferenceServerException as error:
        ended = error
    return ended, time.monotonic() - began


def test_a_burst_is_refused_at_once_and_what_was_accepted_is_served(small_queue):
    with ThreadPoolExecutor(24) as pool:
        results = list(pool.map(lambda seed: attempt(small_queue, seed), range(24)))
    refused = [(error, seconds) for error, seconds in results if isinstance(error, Exception)]
    served = [seed for seed, _ in results if not isinstance(seed, Exception)]
    assert len(served) >= 2
    assert len(refused) >= 5
    for error, _ in refused:
        assert error.status() == "StatusCode.UNAVAILABLE"
        assert "queue: about" in error.message()
    stats = plain.verb(small_queue, "stats")
    assert stats["rejected_total"] == len(refused)
    assert stats["estimate_seconds"] == stats["waiting"] == stats["running"] == 0


def test_the_client_raises_overloaded_after_its_retries_and_serves_later(small_queue):
    with Client(small_queue, timeout=60) as client:
        jobs = [client.submit(seed=seed, **REQUEST) for seed in range(40)]
        ends = [end(job) for job in jobs]
        assert Overloaded in ends
        assert int in ends
        assert client.generate("a 3d rocket", num_inference_steps=1).seed >= 0


def end(job):
    try:
        return type(job.get().seed)
    except Overloaded as error:
        assert error.retry_after_s >= 1
        return Overloaded
