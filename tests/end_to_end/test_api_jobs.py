"""Jobs of the HTTP front on the real server: kept, followed, stopped, told, and alive after every kind of stop."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx2
import psutil
import pytest

from triptych_demo import demo_builds
from triptych_server import Server

from .. import fronts, plain
from ..fronts import SMALL, until

LONG = {"prompt": "a 3d rocket", "num_inference_steps": 60, "height": 256, "width": 256, "seed": 1}
SECRET = "a secret of mine"


@pytest.fixture(scope="module")
def front(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("front")
    with fronts.running(folder, demo.grpc, "--jobs", folder / "jobs.db", "--private-webhooks", "--at-once", 2) as front:
        yield front


@pytest.fixture
def http(front):
    with httpx2.Client(base_url=front.address, timeout=60) as client:
        yield client


def job(http, headers=None, **body):
    answer = http.post("/v1/jobs", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()


def ended(http, id):
    until(lambda: http.get(f"/v1/jobs/{id}").json()["status"] not in ("queued", "generating"), 60)
    return http.get(f"/v1/jobs/{id}").json()


def test_a_job_ends_with_the_answer_of_generations(http):
    begun = job(http, **SMALL, n=2)
    assert begun["poll_url"] == f"/v1/jobs/{begun['id']}"
    done = ended(http, begun["id"])
    assert done["status"] == "completed"
    assert done["expires"] - done["ended"] == 24 * 3600
    drawn = http.post("/v1/images/generations", json={**SMALL, "n": 2}).json()
    assert [one["b64_json"] for one in done["result"]["data"]] == [one["b64_json"] for one in drawn["data"]]


def test_a_job_without_a_seed_has_one(http):
    done = ended(http, job(http, prompt="a fox", num_inference_steps=2)["id"])
    assert done["result"]["data"][0]["triptych"]["seed"] >= 0


def test_events_tell_steps_with_previews_and_then_the_end(http):
    id = job(http, **LONG)["id"]
    with http.stream("GET", f"/v1/jobs/{id}/events") as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert events[-1]["type"] == "job.completed"
    assert events[-1]["result"]["data"]
    progress = [event for event in events if event["type"] == "job.progress"]
    steps = [event["step"] for event in progress]
    assert steps == sorted(steps)
    assert len(steps) > 5
    assert base64.b64decode(next(event["preview"] for event in progress if event["preview"]))[:4] == b"\x89PNG"
    again = http.get(f"/v1/jobs/{id}/events").text
    assert again.startswith("event: job.completed\n")


def test_a_job_is_stopped_wherever_it_is_and_then_forgotten(http, url):
    running, waiting = job(http, **LONG, n=2), [job(http, **LONG) for _ in range(3)]
    until(lambda: http.get(running["poll_url"]).json()["status"] == "generating")
    assert http.get(waiting[-1]["poll_url"]).json()["queue_position"] is not None
    for one in (*reversed(waiting), running):
        assert http.delete(one["poll_url"]).json()["status"] == "cancelled"
    until(lambda: plain.verb(url, "stats")["running"] == 0)
    assert http.delete(running["poll_url"]).json() == {"id": running["id"], "object": "job", "deleted": True}
    assert http.get(running["poll_url"]).status_code == 404


def test_an_idempotency_key_gives_the_same_job(http):
    key = {"idempotency-key": str(uuid.uuid4())}
    one = job(http, key, prompt="a fox", num_inference_steps=2)
    assert job(http, key, prompt="a fox", num_inference_steps=2)["id"] == one["id"]
    assert job(http, prompt="a fox", num_inference_steps=2)["id"] != one["id"]
    refused = http.post("/v1/jobs", json={"prompt": "a wolf"}, headers=key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_conflict")
    ended(http, one["id"])
    assert job(http, key, prompt="a fox", num_inference_steps=2)["status"] == "completed"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({**SMALL, "stream": True}, "stream"),
        ({**SMALL, "webhook": {"url": "https://example.org"}}, "webhook"),
        ({**SMALL, "webhook": {"url": "https://example.org", "secret": "short"}}, "webhook.secret"),
        ({**SMALL, "webhook": {"url": "file:///etc/passwd", "secret": SECRET}}, "webhook.url"),
        ({**SMALL, "webhook": {"url": "https://user:x@example.org", "secret": SECRET}}, "webhook.url"),
    ],
)
def test_what_is_wrong_with_a_job_is_said_before_it_is_taken(http, body, param):
    answer = http.post("/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.fixture
def listener():
    """A caller's own server: what it was told; it refuses the first."""
    told = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            told.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(503 if len(told) == 1 else 204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", told
    server.shutdown()
    server.server_close()


def test_a_webhook_is_signed_and_tried_again(http, listener):
    url, told = listener
    id = job(http, **SMALL, webhook={"url": url, "secret": SECRET})["id"]
    until(lambda: len(told) == 2, 30)
    headers, body = told[1]
    assert json.loads(body)["type"] == "job.completed"
    assert json.loads(body)["data"]["id"] == headers["webhook-id"] == id
    assert "result" not in json.loads(body)["data"]
    signed = f"{id}.{headers['webhook-timestamp']}.".encode() + body
    signature = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{signature}"


def test_jobs_are_there_after_the_front_was_killed(demo, tmp_path):
    options = ("--jobs", tmp_path / "jobs.db")
    with fronts.running(tmp_path, demo.grpc, *options) as front, httpx2.Client(base_url=front.address) as http:
        done, open_one = job(http, **SMALL), job(http, **LONG)
        first = ended(http, done["id"])
        until(lambda: http.get(open_one["poll_url"]).json()["status"] == "generating")
        front.process.kill()
        front.process.wait()
    assert (tmp_path / "jobs.db").stat().st_mode & 0o077 == 0
    with fronts.running(tmp_path, demo.grpc, *options) as front, httpx2.Client(base_url=front.address) as http:
        assert http.get(done["poll_url"]).json() == first
        drawn = base64.b64decode(ended(http, open_one["id"])["result"]["data"][0]["b64_json"])
        assert front.stop() == 0
    assert drawn == plain.grpc(demo.grpc, **LONG)["image"]


def test_a_stop_leaves_open_jobs_for_the_next_start(demo, tmp_path):
    options = ("--jobs", tmp_path / "jobs.db")
    with fronts.running(tmp_path, demo.grpc, *options) as front, httpx2.Client(base_url=front.address) as http:
        id = job(http, **LONG)["id"]
        until(lambda: http.get(f"/v1/jobs/{id}").json()["status"] == "generating")
        assert front.stop() == 0
    until(lambda: plain.verb(demo.grpc, "stats")["running"] == 0)
    with fronts.running(tmp_path, demo.grpc, *options) as front, httpx2.Client(base_url=front.address) as http:
        assert ended(http, id)["status"] == "completed"


def test_a_stop_lets_requests_under_way_end(demo, tmp_path):
    with fronts.running(tmp_path, demo.grpc) as front:
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx2.post(f"{front.address}/v1/images/generations", json=LONG, timeout=60))
        )
        asking.start()
        until(lambda: plain.verb(demo.grpc, "stats")["running"] == 1)
        assert front.stop() == 0
        asking.join()
        assert answers[0].status_code == 200


def tritons():
    return {one for one in psutil.Process().children(recursive=True) if one.name() == "tritonserver"}


@pytest.mark.serial
def test_a_killed_server_is_told_and_found_again(tmp_path):
    others = tritons()
    with (
        Server(demo_builds(), http_port=0, grpc_port=0, metrics_port=0, cache_mb=0) as server,
        fronts.running(tmp_path, server.addresses.grpc) as front,
        httpx2.Client(base_url=front.address, timeout=30) as http,
    ):
        assert http.post("/v1/images/generations", json=SMALL).status_code == 200
        id = job(http, **LONG)["id"]
        until(lambda: http.get(f"/v1/jobs/{id}").json()["status"] == "generating")
        (triton,) = tritons() - others
        triton.send_signal(signal.SIGKILL)
        triton.wait()
        began = time.monotonic()
        answer = http.post("/v1/images/generations", json=SMALL)
        if answer.status_code != 200:  # else Triton was back before the front had lost patience
            # Two seconds on a machine with nothing else to do.
            assert time.monotonic() - began < 15
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_unavailable")
            assert "retry-after" in answer.headers
        until(lambda: http.post("/v1/images/generations", json=SMALL).status_code == 200, 60)
        assert ended(http, id)["status"] == "completed"


def test_no_file_descriptors_are_left(front):
    """The front holds few after all of the above."""
    assert len(os.listdir(f"/proc/{front.process.pid}/fd")) < 60
