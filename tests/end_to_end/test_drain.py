"""A stop of the real server under load: what is in flight ends as pictures, what comes is told to come again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from triptych import Client, ServerUnavailable

from .. import plain

pytestmark = pytest.mark.serial

TRIPTYCH = str(Path(sys.executable).parent / "triptych")
LONG = {"prompt": "a 3d rocket", "num_inference_steps": 100, "height": 256, "width": 256}


@pytest.fixture(autouse=True)
def _own_temp(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@contextmanager
def serving(*options):
    """`triptych serve` of both demo models: its process and its gRPC address."""
    command = [TRIPTYCH, "serve", "--http-port=0", "--grpc-port=0", "--metrics-port=0", "--cache-mb=0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().split()[1]
        finally:
            process.kill()


def stop(process):
    """Send SIGTERM and wait until the server drains."""
    process.send_signal(signal.SIGTERM)
    while "finishing" not in process.stderr.readline():
        assert process.poll() is None


def mixed(count, steps):
    """Requests of both families, of so many steps in turn: (model, inputs)."""
    for k in range(count):
        wanted = {"prompt": f"a fox {k}", "seed": k, "num_inference_steps": steps[k % len(steps)]}
        yield "stable_cascade" if k % 2 else "sdxl", wanted


def admitted(url, id):
    """Wait until the loop has a job, or has had it; a watch waits two seconds for it."""
    for _ in range(30):
        with contextlib.suppress(InferenceServerException):
            plain.verb(url, "watch", id=id)
            return
    pytest.fail("it never arrived")


@pytest.mark.parametrize(("count", "steps"), [(10, [2, 60, 5, 30, 12]), (60, [2, 12, 5])])
def test_all_that_is_in_flight_ends_as_pictures(count, steps):
    with serving("--grace=300") as (process, url), ThreadPoolExecutor(2 * count) as pool:
        ids = [str(uuid.uuid4()) for _ in range(count)]
        asked = [
            pool.submit(plain.grpc, url, id, model, **wanted)
            for id, (model, wanted) in zip(ids, mixed(count, steps), strict=True)
        ]
        for watch in [pool.submit(admitted, url, id) for id in ids]:
            watch.result()
        stop(process)
        assert all(future.result()["image"].startswith(b"\x89PNG") for future in asked)
        assert process.wait(60) == 0


def test_a_request_is_drawn_or_told_to_come_again_whenever_it_comes():
    """A stream of short requests across the stop, so that some are between any two models just then."""
    with serving("--grace=300") as (process, url), ThreadPoolExecutor(16) as pool:

        def ask(k):
            try:
                return plain.grpc(url, prompt="a fox", seed=k, num_inference_steps=1)["image"][:4]
            except InferenceServerException as error:
                return f"{error.status()} {error.message()}"

        before = [pool.submit(ask, k) for k in range(64)]
        before[8].result()
        stop(process)
        outcomes = {future.result() for future in before}
        assert process.wait(60) == 0
    assert b"\x89PNG" in outcomes
    refused = outcomes - {b"\x89PNG"}
    assert all("UNAVAILABLE" in words and ("draining: " in words) for words in refused), refused


@contextmanager
def draining(*options):
    """A server that draws one long picture before it leaves: its process, address, and that picture's id and future."""
    with serving("--grace=300", *options) as (process, url), ThreadPoolExecutor(1) as pool:
        job = str(uuid.uuid4())
        asked = pool.submit(plain.grpc, url, job, **LONG)
        admitted(url, job)
        stop(process)
        yield process, url, job, asked


def test_a_new_request_is_told_to_come_again_while_the_verbs_go_on_working():
    with draining() as (process, url, job, asked):
        for model in ("sdxl", "stable_cascade"):
            with pytest.raises(InferenceServerException, match="draining: ") as refused:
                plain.grpc(url, model=model, prompt="a fox")
            assert refused.value.status() == "StatusCode.UNAVAILABLE"
        with Client(url, timeout=0.4) as client, pytest.raises(ServerUnavailable, match="the server stops") as given_up:
            client.generate("a fox")
        assert given_up.value.nothing_accepted
        assert plain.verb(url, "stats")["running"] == 1
        assert plain.verb(url, "describe")["draining"] is True
        with tritonclient.grpc.InferenceServerClient(url) as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
        assert plain.verb(url, "watch", id=job)["status"] == "running"
        assert plain.verb(url, "cancel", id=job)["cancelled"] is True
        assert asked.exception().status() == "StatusCode.CANCELLED"
        assert process.wait(60) == 0


def test_callers_that_go_on_asking_do_not_hold_up_the_stop():
    with draining() as (process, url, job, asked), ThreadPoolExecutor(2) as pool:

        def go_on(ask):
            while process.poll() is None:
                try:
                    ask()
                except InferenceServerException:
                    time.sleep(0.01)

        going_on = [
            pool.submit(go_on, lambda: plain.grpc(url, prompt="a fox")),
            pool.submit(go_on, lambda: plain.verb(url, "stats")),
        ]
        plain.verb(url, "cancel", id=job)
        assert process.wait(60) == 0
        assert asked.exception()
        for caller in going_on:
            caller.result()


def test_what_the_grace_does_not_last_for_ends_with_a_named_error():
    with serving("--grace=1") as (process, url), ThreadPoolExecutor(8) as pool:
        ids = [str(uuid.uuid4()) for _ in range(8)]
        asked = [pool.submit(plain.grpc, url, id, **LONG) for id in ids]
        for id in ids:
            admitted(url, id)
        stop(process)
        for future in asked:
            assert future.exception().status() == "StatusCode.UNAVAILABLE"
            assert "stopped: at step" in future.exception().message()
        assert process.wait(60) == 1
        assert "requests were still in flight after 1 s and were cut off" in process.stderr.read()


@pytest.mark.parametrize("sooner", [0, 0.02, 0.05, 0.1, 0.2])
def test_a_stop_right_after_the_start_leaves_no_folder(tmp_path, sooner):
    command = [TRIPTYCH, "serve", "--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not [*tmp_path.glob("triptych-run-*")]:
            assert process.poll() is None
        time.sleep(sooner)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not [*tmp_path.glob("triptych-run-*")]
