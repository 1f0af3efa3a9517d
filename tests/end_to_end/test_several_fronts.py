"""Two HTTP fronts with one database on the real server: a job of one is a job of the other, and outlives its front."""

from __future__ import annotations

import base64
import json
import uuid
from contextlib import contextmanager

import httpx2
import pytest

from .. import fronts, plain, postgres
from ..fronts import SMALL, until

LONG = {"prompt": "a 3d rocket", "num_inference_steps": 40, "height": 256, "width": 256}
OVER = ("completed", "failed", "cancelled")


@pytest.fixture(scope="module")
def database():
    with postgres.running() as url:
        yield url


@contextmanager
def asked(folder, url, database):
    """A front, and a client of it."""
    options = ("--jobs", database, "--at-once", 2)
    with fronts.running(folder, url, *options) as front, httpx2.Client(base_url=front.address, timeout=60) as http:
        yield front, http


@pytest.fixture(scope="module")
def two(demo, database, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fronts")
    with asked(folder, demo.grpc, database) as (_, one), asked(folder, demo.grpc, database) as (_, other):
        yield one, other


def job(http, headers=None, **body):
    answer = http.post("/v1/jobs", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def state(http, id):
    return http.get(f"/v1/jobs/{id}").json()


def ended(http, id):
    until(lambda: state(http, id)["status"] in OVER, 120)
    return state(http, id)


def picture(done):
    return base64.b64decode(done["result"]["data"][0]["b64_json"])


def test_a_job_of_one_is_polled_at_the_other_with_its_picture(two, url):
    one, other = two
    id = job(one, **LONG, seed=1)
    until(lambda: state(other, id)["status"] == "generating")
    assert state(other, id)["num_steps"] == 40
    done = ended(other, id)
    assert done == state(one, id)
    assert picture(done) == plain.grpc(url, **LONG, seed=1)["image"]


def test_events_of_a_job_are_told_by_the_other(two):
    one, other = two
    id = job(one, **LONG, seed=2)
    with other.stream("GET", f"/v1/jobs/{id}/events") as answer:
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data: ")]
    steps = [event["step"] for event in events if event["type"] == "job.progress"]
    assert len(steps) > 5
    assert steps == sorted(steps)
    assert events[-1]["type"] == "job.completed"
    assert events[-1]["result"] == state(one, id)["result"]


def test_the_other_stops_a_job_and_forgets_it(two, url):
    one, other = two
    ids = [job(one, **LONG, seed=seed) for seed in range(3, 7)]
    until(lambda: state(other, ids[0])["status"] == "generating")
    for id in ids:
        assert other.delete(f"/v1/jobs/{id}").json()["status"] == "cancelled"
        assert state(one, id)["status"] == "cancelled"  # though what draws it there has not heard of it yet
    until(lambda: plain.verb(url, "stats")["running"] == 0)
    for id in ids:
        assert other.delete(f"/v1/jobs/{id}").json()["deleted"]
        assert one.get(f"/v1/jobs/{id}").status_code == 404
    assert ended(one, job(one, **SMALL))["status"] == "completed"


def test_an_idempotency_key_is_that_of_both(two):
    one, other = two
    key = {"idempotency-key": str(uuid.uuid4())}
    assert job(one, key, **SMALL) == job(other, key, **SMALL)
    refused = other.post("/v1/jobs", json={"prompt": "a wolf"}, headers=key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_conflict")


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_what_a_front_leaves_is_drawn_by_the_other(demo, database, tmp_path, end):
    with asked(tmp_path, demo.grpc, database) as (front, http):
        done = ended(http, job(http, **SMALL))
        ids = [job(http, **LONG, seed=seed) for seed in range(10, 13)]  # one of them waits in it
        until(lambda: state(http, ids[0])["status"] == "generating")
        with asked(tmp_path, demo.grpc, database) as (_, other):
            getattr(front.process, end)()
            front.process.wait(60)
            assert state(other, done["id"]) == done
            pictures = [picture(ended(other, id)) for id in ids]
    assert pictures == [plain.grpc(demo.grpc, **LONG, seed=seed)["image"] for seed in range(10, 13)]
