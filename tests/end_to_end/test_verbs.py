"""watch, cancel, stats, deadlines and metrics on the real server, with plain tritonclient."""

from __future__ import annotations

import json
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from tritonclient.utils import InferenceServerException

from .. import plain

# The demo model at its largest: long enough to be caught in the act.
LONG = {"prompt": "a 3d rocket", "num_inference_steps": 100, "height": 256, "width": 256, "seed": 1}


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


@contextmanager
def company(url, pool, jobs=3):
    """More of them beside the one that is watched, where a quick machine would end that one too soon."""
    ids = [str(uuid.uuid4()) for _ in range(jobs)]
    futures = [pool.submit(plain.grpc, url, id, **LONG) for id in ids]
    for id in ids:
        running(url, id)
    yield
    for id, future in zip(ids, futures, strict=True):
        plain.verb(url, "cancel", id=id)
        future.exception()


def running(url, job, **tenant):
    """Wait until a job has made a step."""
    state = plain.verb(url, "watch", id=job, **tenant)
    while state["status"] == "queued":
        state = plain.verb(url, "watch", id=job, since=state["seq"], **tenant)
    return state


def test_watching_counts_every_step_to_the_end(url, pool):
    job = str(uuid.uuid4())
    future = pool.submit(plain.grpc, url, job, prompt="a 3d rocket", num_inference_steps=30, seed=3)
    states, since = [], -1
    while not states or states[-1]["status"] in ("queued", "running"):
        states.append(plain.verb(url, "watch", id=job, since=since))
        since = states[-1]["seq"]
    steps = [state["step"] for state in states]
    assert steps == sorted(steps)
    assert len(set(steps)) > 5
    assert states[-1]["status"] == "completed"
    assert states[-1]["step"] == states[-1]["num_steps"] == 30
    assert future.result()["receipt"]["num_inference_steps"] == 30


@pytest.mark.serial
def test_cancel_ends_the_request_and_frees_its_slot_within_one_step(url, pool):
    job = str(uuid.uuid4())
    future = pool.submit(plain.grpc, url, job, **LONG)
    running(url, job)
    step_seconds = plain.verb(url, "stats")
    began = time.monotonic()
    assert plain.verb(url, "cancel", id=job) == {"id": job, "cancelled": True}
    took = time.monotonic() - began
    stats = plain.verb(url, "stats")
    with pytest.raises(InferenceServerException) as error:
        future.result()
    assert error.value.status() == "StatusCode.CANCELLED"
    assert stats["running"] == 0
    assert stats["cancelled_total"] == step_seconds["cancelled_total"] + 1
    assert took < 1.0
    assert plain.verb(url, "cancel", id=job)["cancelled"] is False
    assert plain.verb(url, "watch", id=job)["status"] == "cancelled"


def test_another_tenant_cannot_watch_or_cancel(url, pool):
    job = str(uuid.uuid4())
    with company(url, pool):
        future = pool.submit(plain.grpc, url, job, tenant="mine", **LONG)
        running(url, job, tenant="mine")
        foreign = [(action, tenant) for action in ("watch", "cancel") for tenant in ({}, {"tenant": "yours"})]
        # All at once: each is answered after two seconds, in which the request might still have arrived.
        for answer in [pool.submit(plain.verb, url, action, id=job, **tenant) for action, tenant in foreign]:
            with pytest.raises(InferenceServerException, match="id: "):
                answer.result()
        assert plain.verb(url, "cancel", id=job, tenant="mine")["cancelled"] is True
        with pytest.raises(InferenceServerException):
            future.result()


@pytest.mark.serial
def test_a_deadline_ends_a_request_in_time(url):
    began = time.monotonic()
    with pytest.raises(InferenceServerException, match="deadline_ms: 700 ms passed at step") as error:
        plain.grpc(url, **LONG, deadline_ms=700)
    assert error.value.status() == "StatusCode.CANCELLED"
    assert 0.7 <= time.monotonic() - began < 1.7


def test_a_job_ends_with_its_watcher_where_asked(url, pool):
    job = str(uuid.uuid4())
    with company(url, pool):
        future = pool.submit(plain.grpc, url, job, cancel_on_disconnect=True, **LONG)
        running(url, job)
        with pytest.raises(InferenceServerException, match="client has gone"):
            future.result(timeout=60)


def test_many_deadlines_that_pass_at_once_are_all_answered(url, pool):
    """Errors told by the loop and beside it at the same moment took Triton down, within 60 of these bursts."""

    def late(seed):
        with pytest.raises(InferenceServerException) as error:
            plain.grpc(url, **{**LONG, "seed": seed}, deadline_ms=10)
        return error.value.status()

    for burst in range(60):
        assert {*pool.map(late, range(8))} == {"StatusCode.CANCELLED"}, f"burst {burst}"


def test_the_loops_own_metrics_are_published(demo):
    plain.grpc(demo.grpc, prompt="a flat icon of a penguin", num_inference_steps=2)
    stats = plain.verb(demo.grpc, "stats")
    deadline = time.monotonic() + 60
    counted = ("batches_total", "rows_total", "completed_total", "cancelled_total", "rejected_total")
    expected = {f"triptych_{name}": stats[name] for name in counted}
    while not expected.items() <= (values := published(demo.metrics)).items():  # they are published one after another
        assert time.monotonic() < deadline, f"metrics are behind: {values}"
    assert {
        "triptych_waiting",
        "triptych_running",
        "triptych_step_seconds_total",
        "triptych_batch_rows",
    } <= values.keys()
    assert values["triptych_rows_total"] >= values["triptych_batches_total"] > 0


def published(metrics):
    """Ours on the metrics page, by name."""
    page = urllib.request.urlopen(metrics, timeout=5).read().decode()
    ours = [line for line in page.splitlines() if line.startswith("triptych_")]
    return {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in ours}


def test_http_answers_like_grpc(demo):
    request = {"prompt": "a flat icon of a penguin", "num_inference_steps": 3, "seed": 9}
    assert (
        plain.http(demo.http.removeprefix("http://"), **request)["image"] == plain.grpc(demo.grpc, **request)["image"]
    )


def test_the_seed_is_resolved_and_makes_the_same_image_again(url):
    first = plain.grpc(url, prompt="a flat icon of a penguin", num_inference_steps=3)
    again = plain.grpc(url, prompt="a flat icon of a penguin", num_inference_steps=3, seed=first["seed"])
    assert first["image"] == again["image"]
    assert json.dumps(first["receipt"]["stages"])
