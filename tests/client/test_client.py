"""The client's own judgement: seeds, retries, events, cancelling, errors. The server is played by a fake transport."""

from __future__ import annotations

import asyncio

import pytest
from tritonclient.utils import InferenceServerException

from triptych import (
    AsyncClient,
    Client,
    Completed,
    DeadlineExceeded,
    InProgress,
    InvalidRequest,
    Overloaded,
    Queued,
    RequestCancelled,
    ServerError,
    ServerUnavailable,
    patience,
)
from triptych import async_client as under_test
from triptych.errors import translate
from triptych.patience import MAX_LOST, Patience
from triptych_contract.errors import facts_of, with_facts

from .fakes import FakeTransport

GONE = ServerUnavailable("connect", nothing_accepted=True)
LOADING = ServerUnavailable("no available versions", nothing_accepted=True, loading=True)
BROKEN = ServerUnavailable("the connection broke")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(patience, "BACK_OFF_S", (0.001,))
    monkeypatch.setattr(patience, "FULL_S", (0.001, 0.001))


def running(step, seq):
    return {"status": "running", "seq": seq, "step": step, "num_steps": 3, "remaining_s": 1.5, "position": None}


async def test_every_attempt_carries_the_same_seed_and_id():
    transport = FakeTransport(GONE, Overloaded("queue: full", retry_after_s=0.001), b"image")
    async with AsyncClient(transport=transport) as client:
        image = await client.generate("a fox")
    assert image.data == b"image"
    assert len(transport.requests) == 3
    assert len({(r["seed"], r["request_id"]) for r in transport.requests}) == 1
    assert 0 <= transport.requests[0]["seed"] < 2**32


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (GONE, True),
        (LOADING, True),
        (BROKEN, False),
        (InvalidRequest(message="steps: 0"), False),
        (ServerError("x"), False),
        (RequestCancelled("x"), False),
    ],
)
async def test_only_what_was_never_accepted_is_sent_again(error, again):
    transport = FakeTransport(error)
    async with AsyncClient(transport=transport, patience=Patience(absent_s=0.1, loading_s=0.1)) as client:
        with pytest.raises(type(error)):
            await client.generate("a fox", seed=0)
    assert (len(transport.requests) > 1) == again
    assert {request["seed"] for request in transport.requests} == {0}


@pytest.mark.parametrize("error", [GONE, LOADING])
async def test_a_timeout_is_how_long_a_server_that_is_away_is_looked_for(error):
    transport = FakeTransport(*[error] * 20, b"image")
    async with AsyncClient(transport=transport, timeout=60, patience=Patience(0, 0)) as client:
        await client.generate("a fox")
    assert len(transport.requests) == 21


async def test_one_that_loads_is_waited_for_apart_from_one_that_is_away():
    told = []
    transport = FakeTransport(LOADING, GONE, LOADING, b"image")
    patience = Patience(absent_s=10, loading_s=20, tell=lambda error, seconds: told.append((error, round(seconds))))
    async with AsyncClient(transport=transport, patience=patience) as client:
        await client.generate("a fox")
    assert told == [(LOADING, 20), (GONE, 10), (LOADING, 20)]


async def test_a_request_over_which_models_die_is_sent_again_with_its_id_but_not_for_ever():
    transport = FakeTransport(ServerUnavailable("lost: …", nothing_accepted=True, loading=True, lost=True))
    async with AsyncClient(transport=transport, timeout=60) as client:
        with pytest.raises(ServerUnavailable, match="lost"):
            await client.generate("a fox")
    assert len(transport.requests) == MAX_LOST + 1
    assert len({request["request_id"] for request in transport.requests}) == 1


async def test_a_full_queue_is_asked_three_times_whatever_the_timeout():
    transport = FakeTransport(Overloaded("queue: full", retry_after_s=0.001))
    async with AsyncClient(transport=transport, timeout=60) as client:
        with pytest.raises(Overloaded):
            await client.generate("a fox")
    assert len(transport.requests) == 3


async def test_what_a_server_serves_is_asked_until_it_has_loaded():
    transport = FakeTransport(reports={"describe": lambda: LOADING if len(transport.verbs) < 3 else {"models": {}}})
    async with AsyncClient(transport=transport) as client:
        assert await client.models() == {}
    assert transport.verbs == ["describe"] * 3


async def test_many_have_consecutive_seeds_in_order():
    transport = FakeTransport()
    async with AsyncClient(transport=transport) as client:
        images = await client.generate_many("a fox", 4, seed=2**53)
    assert [image.seed for image in images] == [2**53 + k for k in range(4)]


async def test_one_timeout_is_the_servers_deadline_and_the_calls():
    transport = FakeTransport()
    async with AsyncClient(transport=transport, timeout=100) as client:
        await client.generate("a fox", timeout=3)
    (request,) = transport.requests
    assert 2900 < request["deadline_ms"] <= 3000
    assert 3 < request["timeout_s"] <= 3 + under_test.GRACE_S


async def test_a_verb_that_nobody_answers_is_no_deadline_of_the_callers():
    class Silent(FakeTransport):
        async def infer(self, *_args, **_options):
            raise DeadlineExceeded("Deadline Exceeded")

    async with AsyncClient(transport=Silent()) as client:
        with pytest.raises(ServerUnavailable, match="no answer to stats within 5 s"):
            await client.stats()


async def test_a_timeout_that_has_passed_is_not_sent():
    transport = FakeTransport(GONE)
    async with AsyncClient(transport=transport) as client:
        with pytest.raises((DeadlineExceeded, ServerUnavailable)):
            await client.generate("a fox", timeout=1e-9)
    assert len(transport.requests) <= 1


async def test_events_come_in_order_and_end_with_the_picture():
    states = [{"status": "queued", "seq": 1, "position": 2, "step": 0, "num_steps": 3}, running(1, 2), running(2, 3)]
    transport = FakeTransport(states=states)
    transport.hold.clear()
    async with AsyncClient(transport=transport) as client:
        events = [event async for event in client.stream("a fox")]
    assert events[:2] == [Queued(2), InProgress(1, 3, 1.5)]
    assert isinstance(events[-1], Completed)
    assert events[-1].image.data == b"image"


async def test_a_failing_watch_never_loses_the_picture():
    transport = FakeTransport(states=[ServerError("watch broke"), running(1, 1)])
    transport.hold.clear()
    async with AsyncClient(transport=transport) as client:
        events = [event async for event in client.submit("a fox").iter_events()]
    assert isinstance(events[-1], Completed)


async def test_a_caller_that_stops_waiting_cancels_on_the_server():
    transport = FakeTransport()
    transport.hold.clear()
    async with AsyncClient(transport=transport) as client:
        job = client.submit("a fox")
        waiting = asyncio.ensure_future(job.get())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert transport.cancelled == [job.id]


async def test_leaving_a_stream_early_cancels_its_job():
    transport = FakeTransport(states=[running(1, 1), running(2, 2), running(3, 3)])
    transport.hold.clear()
    async with AsyncClient(transport=transport) as client:
        events = client.stream("a fox")
        await anext(events)
        await events.aclose()
        assert len(transport.cancelled) == 1


async def test_leaving_the_client_cancels_what_is_in_flight():
    transport = FakeTransport()
    transport.hold.clear()
    async with AsyncClient(transport=transport) as client:
        jobs = client.submit_many("a fox", 3)
        await asyncio.sleep(0)
    assert sorted(transport.cancelled) == sorted(job.id for job in jobs)
    assert transport.closed


async def test_tenants_go_with_every_call():
    transport = FakeTransport()
    async with AsyncClient(transport=transport, tenant="mine") as client:
        await client.generate("a fox")
    assert transport.requests[0]["tenant"] == "mine"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 4}, "steps: an unknown parameter given; legal: prompt, negative_prompt, seed"),
        ({"seed": 2**63}, f"seed: {2**63} given; legal: a whole number below 2^63"),
        ({"seed": 1.5}, "seed: 1.5 given"),
        ({"seed": "7"}, "seed: '7' given; legal: a number"),
        ({"num_inference_steps": True}, "num_inference_steps: True given; legal: a number"),
        ({"height": float("nan")}, "height: nan given"),
        ({"negative_prompt": "\udcff"}, "negative_prompt: a character that is not Unicode at 0 given"),
        ({"sampler": 3}, "sampler: 3 given; legal: a text"),
    ],
)
async def test_what_cannot_be_sent_is_refused_by_name(given, message):
    transport = FakeTransport()
    async with AsyncClient(transport=transport) as client:
        with pytest.raises(InvalidRequest) as error:
            await client.generate("a fox", **given)
    assert message in str(error.value)
    assert isinstance(error.value, ValueError)
    assert error.value.field == next(iter(given))
    assert not transport.requests


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("INVALID_ARGUMENT", "in ensemble 'sdxl', seed: -1 given; legal: 0 … 9", InvalidRequest),
        (
            "UNAVAILABLE",
            "in ensemble 'sdxl', queue: about 7 s of work waits, limit 2 s; try again in about 5 s\n"
            '{"retry_after_s": 5}',
            Overloaded,
        ),
        ("UNAVAILABLE", "failed to connect to all addresses", ServerUnavailable),
        ("UNAVAILABLE", "Request for unknown model: 'sdxl' has no available versions", ServerUnavailable),
        ("NOT_FOUND", "Request for unknown model: 'sdxl' has no available versions", ServerUnavailable),
        ("NOT_FOUND", "Request for unknown model: 'sdxl' is not found", InvalidRequest),
        ("UNAVAILABLE", "Socket closed", ServerUnavailable),
        ("UNAVAILABLE", 'in ensemble \'sdxl\', lost: the process died\n{"lost": "vqgan"}', ServerUnavailable),
        ("UNAVAILABLE", "in ensemble 'sdxl', draining: the server stops\n{\"stopping\": true}", ServerUnavailable),
        ("UNAVAILABLE", "in ensemble 'sdxl', stopped: at step 3 of 60\n{\"stopping\": true}", ServerUnavailable),
        (
            "CANCELLED",
            "in ensemble 'sdxl', deadline_ms: 5 ms passed at step 1\n{\"deadline_ms\": 5}",
            DeadlineExceeded,
        ),
        ("CANCELLED", "in ensemble 'sdxl', cancelled: on request", RequestCancelled),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceeded),
        ("INTERNAL", "in ensemble 'sdxl', Stub process 'vae_encoder_0_0' is not healthy.", ServerUnavailable),
        ("INTERNAL", "in ensemble 'sdxl', [request id: 5] denoise: the model failed", ServerError),
    ],
)
def test_foreign_errors_become_ours(code, message, kind):
    error = translate(InferenceServerException(message, status=f"StatusCode.{code}"), "the id")
    assert type(error) is kind
    assert "ensemble" not in str(error)
    assert "[request id" not in str(error)
    assert "{" not in str(error)
    assert error.request_id == "the id"
    if kind is Overloaded:
        assert error.retry_after_s == 5
    if kind is ServerUnavailable:
        assert error.nothing_accepted == (message != "Socket closed")
        assert error.lost == ("Stub process" in message or "lost: " in message)
        assert error.loading == (error.lost or "no available versions" in message)


@pytest.mark.parametrize(
    "message", ["", "words", "two\nlines", "words\n{", 'words\n["a"]', "{}", "words\n" + "{" * 9999]
)
def test_words_of_others_have_no_facts(message):
    assert facts_of(message) == (message, {})
    assert facts_of(with_facts("two\nlines", {"a": 1})) == ("two\nlines", {"a": 1})


def test_the_sync_client_is_the_same_client():
    with Client(transport=None, url="localhost:1", timeout=0.2) as client:
        assert client.ready() is False
        with pytest.raises(ServerUnavailable):
            client.generate("a fox")
        with pytest.raises(InvalidRequest, match="steps: an unknown parameter"):
            client.generate("a fox", steps=3)
