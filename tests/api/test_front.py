"""What the front answers to whatever the server does; the server is a fake, since its faults have to be made."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import asynccontextmanager

import httpx2
import pytest

from triptych.errors import DeadlineExceeded, Overloaded, Problem, RequestCancelled, ServerError, ServerUnavailable
from triptych_api import jobs as jobs_module
from triptych_api.app import Options, build
from triptych_api.jobs import Bounds
from triptych_api.keys import Keys
from triptych_contract.errors import InvalidRequest
from triptych_contract.families import DEFAULT
from triptych_demo import demo_build

from ..client.fakes import FakeTransport

CARD = json.loads((demo_build() / "manifest.json").read_text())["model"]
DESCRIBED = {"models": {DEFAULT.name: {"family": DEFAULT.name, "model": CARD}}}
BODY = {"prompt": "a fox", "seed": 1}


def receipt(inputs):
    sides = {"width": inputs.get("width", 256), "height": inputs.get("height", 256)}
    return {"output_format": "png", "timings": {"queue_ms": 1.0}, "negative_prompt": None, **sides}


@asynccontextmanager
async def front(*answers, options=None, **more):
    """A front whose server gives these answers: whoever asks it, and the server."""
    server = FakeTransport(*answers, receipt=receipt, reports={"describe": DESCRIBED, "stats": {}, **more})
    app = build(Options(client={"transport": server}, **(options or {})))
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        yield client, server


ENDS = [
    (Overloaded("queue: full", retry_after_s=11.2), 429, "queue_full"),
    (ServerUnavailable("gone"), 503, "server_unavailable"),
    (DeadlineExceeded("late"), 408, "deadline_exceeded"),
    (RequestCancelled("by somebody"), 410, "cancelled"),
    (ServerError("a stage failed"), 500, "server_error"),
    (InvalidRequest([Problem("width", "64", "another")]), 400, "invalid_value"),
    (ZeroDivisionError(), 500, "server_error"),
]
# What is interrupted is left out of A1111's answers.
ALL_ENDS = [("/v1/images/generations", *end) for end in ENDS] + [
    ("/sdapi/v1/txt2img", *end) for end in ENDS if not isinstance(end[0], RequestCancelled)
]


@pytest.mark.parametrize(("path", "error", "status", "code"), ALL_ENDS)
async def test_each_end_of_a_request_has_its_status(path, error, status, code):
    async with front(error) as (client, _):
        answer = await client.post(path, json=BODY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert {"message", "type", "param", "code"} <= answer.json()["error"].keys()
    if status == 429:
        assert answer.headers["retry-after"] == "12"


async def test_problems_of_the_server_are_told_by_the_callers_names():
    async with front(InvalidRequest([Problem("width", "64", "another"), Problem("height", "64", "another")])) as (
        client,
        _,
    ):
        answer = await client.post("/v1/images/generations", json={**BODY, "size": "64x64"})
    assert answer.json()["error"]["problems"] == [{"field": "size", "given": "64", "legal": "another"}]


async def test_pictures_that_are_none_are_told_in_the_words_of_http():
    async with front() as (client, _):
        body = {**BODY, "init_image": base64.b64encode(b"hello").decode()}
        (problem,) = (await client.post("/v1/images/generations", json=body)).json()["error"]["problems"]
    assert problem["field"] == "init_image"
    assert "base64" in problem["legal"]
    assert "path" not in problem["legal"]


async def test_a_stream_that_fails_after_its_beginning_ends_with_an_error():
    states = [
        {
            "seq": k,
            "status": "running",
            "step": k,
            "num_steps": 2,
            "remaining_s": None,
            "preview": base64.b64encode(PNG).decode(),
        }
        for k in (1, 2)
    ]
    async with front(ServerError("a stage failed")) as (client, server):
        server.states, server.hold = states, asyncio.Event()
        answer = await client.post("/v1/images/generations", json={**BODY, "stream": True, "partial_images": 1})
    names = [line for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names == ["event: image_generation.partial_image", "event: error"]
    assert '"code": "server_error"' in answer.text


PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


async def test_a_job_whose_server_is_lost_again_and_again_is_told_so(monkeypatch):
    monkeypatch.setattr(jobs_module.random, "uniform", lambda *_: 0)
    async with front(ServerUnavailable("the connection broke")) as (client, server):
        job = (await client.post("/v1/jobs", json=BODY)).json()
        ended = await end_of(client, job)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "server_lost")
    assert [one["seed"] for one in server.requests] == [1, 1, 1]


async def test_a_job_waits_for_a_server_that_is_full_or_away(monkeypatch):
    monkeypatch.setattr(jobs_module.random, "uniform", lambda *_: 0)
    away = ServerUnavailable("away", nothing_accepted=True)
    async with front(Overloaded("full", retry_after_s=9), away, b"image") as (client, _):
        job = (await client.post("/v1/jobs", json=BODY)).json()
        assert (await end_of(client, job))["status"] == "completed"


async def end_of(client, job):
    for _ in range(500):
        state = (await client.get(job["poll_url"])).json()
        if state["status"] not in ("queued", "generating"):
            return state
        await asyncio.sleep(0.02)
    raise AssertionError("it never ends")


async def test_jobs_are_bounded_and_those_of_a_higher_priority_start_first(tmp_path):
    keys = Keys(tmp_path / "keys.json")
    low, high = keys.add("low"), keys.add("high", priority=5)
    options = {"keys": tmp_path / "keys.json", "bounds": Bounds(waiting=3, at_once=1)}
    async with front(options=options) as (client, server):
        server.hold = asyncio.Event()

        async def asked(key, prompt):
            return await client.post("/v1/jobs", json={"prompt": prompt}, headers={"authorization": f"Bearer {key}"})

        first, second, third = [await asked(key, name) for key, name in ((low, "1"), (low, "2"), (high, "3"))]
        assert [one.status_code for one in (first, second, third)] == [202] * 3
        assert third.json()["queue_position"] == 0
        refused = await asked(low, "4")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        server.hold.set()
        for key, job in ((low, first), (low, second), (high, third)):
            client.headers["authorization"] = f"Bearer {key}"
            await end_of(client, job.json())
    assert [one["prompt"] for one in server.requests] == ["1", "3", "2"]
    assert len({one["tenant"] for one in server.requests}) == 2


async def test_readiness_is_the_loops():
    async with front(stats=ServerUnavailable("gone")) as (client, _):
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).status_code == 200


async def test_metrics_are_for_the_neighbourhood():
    async with front() as (client, _):
        assert (await client.get("/metrics")).status_code == 200
        client._transport.client = ("93.184.215.14", 1)
        assert (await client.get("/metrics")).status_code == 404


@pytest.mark.parametrize(("proxies", "status"), [((), 200), (("127.0.0.0/8",), 404)])
async def test_who_asks_is_believed_of_trusted_proxies_only(proxies, status):
    async with front(options={"trusted_proxies": proxies}) as (client, _):
        assert (await client.get("/metrics", headers={"x-forwarded-for": "93.184.215.14"})).status_code == status


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("models = 3", "models"),
        ("[other]", "other"),
        ("[models.x]\nmodel = 3", "models.x.model"),
        ("[models.x]\ncolour = 'red'", "models.x.colour"),
        ("[models.x]\ntenant = 'red'", "models.x.tenant"),
        ("x", "TOML"),
    ],
)
def test_a_configuration_that_is_none_is_refused_at_the_start(tmp_path, text, told):
    (tmp_path / "front.toml").write_text(text)
    with pytest.raises(InvalidRequest, match=told):
        build(Options(config=tmp_path / "front.toml"))


async def test_a_preset_with_an_illegal_value_is_told_to_whoever_asks_for_it(tmp_path):
    (tmp_path / "front.toml").write_text("[models.x]\nnum_inference_steps = 0")
    async with front(options={"config": tmp_path / "front.toml"}) as (client, _):
        answer = await client.post("/v1/images/generations", json={**BODY, "model": "x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "num_inference_steps")
