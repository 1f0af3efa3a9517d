"""Pictures under way: they outlive the page, stop when told, wait for a server that is away, stay apart."""

from __future__ import annotations

import asyncio
import base64
import contextlib

import pytest

from triptych import AsyncClient, InvalidRequest, Overloaded, ServerUnavailable, patience
from triptych_page import jobs as page_jobs
from triptych_page import render
from triptych_page.health import State
from triptych_page.jobs import Jobs, Status
from triptych_page.monitor import Monitor
from triptych_page.store import Store
from triptych_web.limits import Limits, TooMany

from ..client.fakes import FakeTransport
from .described import described

GONE = ServerUnavailable("no server is ready there (failed to connect)", nothing_accepted=True)
BROKEN = ServerUnavailable("the connection broke (Socket closed)")
REPORTS = {"stats": {"batches_total": 3, "estimate_seconds": 0}, "describe": {"models": described()}}
PNG = b"\x89PNG preview"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(patience, "BACK_OFF_S", (0.001,))
    monkeypatch.setattr(patience, "FULL_S", (0.001, 0.001))


def running(step, seq):
    preview = base64.b64encode(PNG).decode()
    facts = {"stage": "unet", "remaining_s": 1.5, "position": None, "preview": preview}
    return {"status": "running", "seq": seq, "step": step, "num_steps": 3, **facts}


@contextlib.asynccontextmanager
async def page(*answers, states=None, held=False, endless=False, **limits):
    transport = FakeTransport(*answers, states=states, reports=dict(REPORTS), endless=endless)
    if held or endless:
        transport.hold.clear()
    store = Store()
    async with AsyncClient(transport=transport) as client:
        monitor = Monitor(client, every_s=0.01)
        looking = asyncio.ensure_future(monitor.run())
        jobs = Jobs(lambda _: client, store, monitor, Limits(**limits))
        try:
            yield jobs, store, transport, monitor
        finally:
            await jobs.close()
            looking.cancel()
            store.close()


def requests(n, first=7):
    return [{"prompt": "a fox", "seed": first + k} for k in range(n)]


async def until(condition):
    async def met():
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(met(), 10)


async def test_pictures_are_kept_in_the_order_of_their_seeds():
    async with page() as (jobs, store, transport, _):
        session = store.session("a")
        batch = jobs.start(session, "sdxl", "sdxl", requests(3))
        await until(lambda: batch.ended)
        assert [entry.seed for entry in batch.entries] == [7, 8, 9]
        assert {entry.group for entry in session.entries} == {batch.id}
        assert {request["tenant"] for request in transport.requests} == {session.tenant}


async def test_a_reloaded_page_finds_its_pictures_under_way():
    states = [{"status": "queued", "seq": 1, "position": 2}, running(1, 2), running(2, 3)]
    async with page(states=states, held=True) as (jobs, store, _, _monitor):
        jobs.start(store.session("a"), "sdxl", "sdxl", requests(1))
        await until(lambda: jobs.latest(store.session("a")).ended)
        assert jobs.latest(store.session("a")).pictures[0].status is Status.DONE
        assert jobs.latest(store.session("b")) is None


async def test_events_are_told_as_they_come():
    async with page(states=[running(1, 1), running(2, 2)], held=True) as (jobs, store, transport, _):
        transport.states.append({"status": "odd", "seq": 3})
        (picture,) = jobs.start(store.session("a"), "sdxl", "sdxl", requests(1)).pictures
        await until(lambda: picture.step == 2)
        assert (picture.total, picture.stage, picture.remaining_s) == (3, "unet", 1.5)
        await until(lambda: picture.status is Status.DONE)
        assert picture.preview is None


async def test_stop_frees_the_servers_slots_and_gives_the_limit_back():
    async with page(states=[running(1, 1)], endless=True, under_way=2) as (jobs, store, transport, _):
        session = store.session("a")
        batch = jobs.start(session, "sdxl", "sdxl", requests(2))
        await until(lambda: any(picture.status is Status.RUNNING for picture in batch.pictures))
        with pytest.raises(TooMany):
            jobs.start(session, "sdxl", "sdxl", requests(1))
        assert jobs.stop(session, batch.id) == 2
        await until(lambda: len(transport.cancelled) == 2)
        await until(lambda: batch.ended_at is not None)
        assert {picture.status for picture in batch.pictures} == {Status.STOPPED}
        assert jobs.stop(session) == 0
        jobs.start(session, "sdxl", "sdxl", requests(2))


async def test_one_picture_of_several_is_stopped_alone():
    async with page(states=[running(1, 1)], endless=True) as (jobs, store, transport, _):
        session = store.session("a")
        batch = jobs.start(session, "sdxl", "sdxl", requests(3))
        await until(lambda: len(transport.requests) == 3)
        assert [jobs.stop(session, batch.id, index) for index in (1, 1, 3, -1)] == [1, 0, 0, 0]
        assert jobs.stop(session, "another", 0) == jobs.stop(store.session("b"), batch.id, 0) == 0
        await until(lambda: transport.cancelled)
        assert [picture.status is Status.STOPPED for picture in batch.pictures] == [False, True, False]
        assert transport.cancelled == [transport.requests[1]["request_id"]]


def few(request):
    return {**request, "num_inference_steps": 4}


async def test_a_picture_that_follows_its_form_stops_the_one_before_and_is_kept_once_the_hand_rests(monkeypatch):
    monkeypatch.setattr(page_jobs, "REST_S", 0.2)
    async with page(states=[running(1, 1)], endless=True) as (jobs, store, transport, _):
        session, batches = store.session("a"), []
        for request in requests(5):
            batches.append(jobs.redraw(session, "sdxl", "sdxl", request, few(request)))
            await until(lambda: len(transport.requests) == len(batches))
        await until(lambda: len(transport.cancelled) == 4)
        assert transport.cancelled == [request["request_id"] for request in transport.requests[:4]]
        assert jobs.live(session) is batches[-1]
        assert jobs.latest(session) is None  # nothing of it among what a button began
        assert not jobs.under_way(session)
        transport.hold.set()
        await until(lambda: batches[-1].ended)
        assert [request.get("num_inference_steps") for request in transport.requests] == [4] * 5 + [None]
        assert [entry.seed for entry in session.entries] == [11]


async def test_a_form_with_few_steps_is_drawn_once_and_kept_once_the_hand_rests(monkeypatch):
    monkeypatch.setattr(page_jobs, "REST_S", 0.05)
    async with page() as (jobs, store, transport, _):
        session = store.session("a")
        batch = jobs.redraw(session, "sdxl", "sdxl", *requests(1), None)
        await until(lambda: batch.pictures[0].sketched)
        assert session.entries == []
        await until(lambda: batch.ended)
        assert len(transport.requests) == len(session.entries) == 1


async def test_a_hand_that_moves_spends_nothing_but_what_is_kept_is_counted(monkeypatch):
    monkeypatch.setattr(page_jobs, "REST_S", 0.05)
    async with page(a_minute=1, under_way=2) as (jobs, store, transport, _):
        session = store.session("a")
        for request in requests(10):
            batch = jobs.redraw(session, "sdxl", "sdxl", request, few(request))
            await until(lambda seed=request["seed"]: transport.requests and transport.requests[-1]["seed"] == seed)
        await until(lambda: batch.ended)
        assert batch.pictures[0].status is Status.DONE
        batch = jobs.redraw(session, "sdxl", "sdxl", *requests(1), few(*requests(1)))
        await until(lambda: batch.ended)
        assert "legal: 1 a minute" in batch.pictures[0].words


async def test_a_sketch_stays_to_be_seen_while_it_is_drawn_in_full(monkeypatch):
    monkeypatch.setattr(page_jobs, "REST_S", 0.0)
    async with page(b"sketch", b"image", states=[running(1, 1), running(2, 2)], held=True) as (
        jobs,
        store,
        _,
        _monitor,
    ):
        session = store.session("a")
        batch = jobs.redraw(session, "sdxl", "sdxl", *requests(1), few(*requests(1)))
        (picture,) = batch.pictures
        looks = []
        picture.show, show = lambda preview: (show(preview), looks.append(picture.preview)), picture.show
        await until(lambda: batch.ended)
        assert looks[-1] == b"sketch"
        assert looks[0] == PNG
        assert render.live(batch)["done"]


async def test_nobody_stops_anothers_pictures():
    async with page(held=True) as (jobs, store, _, _monitor):
        batch = jobs.start(store.session("a"), "sdxl", "sdxl", requests(1))
        assert jobs.stop(store.session("b"), batch.id) == 0
        assert not batch.ended


async def test_a_picture_that_is_refused_says_why():
    async with page(InvalidRequest(message="seed: -1 given; legal: 0 … 9")) as (jobs, store, _, _monitor):
        batch = jobs.start(store.session("a"), "sdxl", "sdxl", requests(1))
        await until(lambda: batch.ended)
        assert batch.pictures[0].status is Status.FAILED
        assert batch.pictures[0].words == "seed: -1 given; legal: 0 … 9"


@pytest.mark.parametrize("error", [GONE, BROKEN])
async def test_a_server_that_goes_away_draws_the_same_picture_when_it_is_back(error):
    async with page(error, error, error, error, b"image") as (jobs, store, transport, _):
        transport.answers = [error, b"image"] if error is BROKEN else transport.answers
        batch = jobs.start(store.session("a"), "sdxl", "sdxl", requests(1))
        await until(lambda: batch.ended)
        assert batch.pictures[0].status is Status.DONE
        assert {request["seed"] for request in transport.requests} == {7}


async def test_a_picture_that_breaks_the_server_again_and_again_is_given_up():
    async with page(BROKEN) as (jobs, store, transport, _):
        batch = jobs.start(store.session("a"), "sdxl", "sdxl", requests(1))
        await until(lambda: batch.ended)
        assert batch.pictures[0].status is Status.FAILED
        assert len(transport.requests) == 3


async def test_a_full_queue_is_waited_for_and_told():
    full = Overloaded("queue: full", retry_after_s=0.05)
    async with page(full, full, full, b"image") as (jobs, store, _, _monitor):
        batch = jobs.start(store.session("a"), "sdxl", "sdxl", requests(1))
        await until(lambda: "the queue is full" in batch.pictures[0].words)
        assert batch.pictures[0].status is Status.WAITING
        await until(lambda: batch.ended)
        assert batch.pictures[0].status is Status.DONE


async def test_a_session_that_is_gone_stops_its_pictures():
    async with page(endless=True, states=[running(1, 1)]) as (jobs, store, transport, _):
        jobs.start(store.session("a"), "sdxl", "sdxl", requests(1))
        await until(lambda: transport.watches)
        assert not transport.cancelled
        jobs.forget_ended(lambda _: False)
        await until(lambda: transport.cancelled)
        assert len(transport.cancelled) == 1


async def test_the_monitor_reads_the_forms_and_notices_a_loss():
    transport = FakeTransport(reports=dict(REPORTS))
    async with AsyncClient(transport=transport) as client:
        monitor = Monitor(client)
        assert (await monitor.look()).state is State.READY
        assert list(monitor.forms) == ["sdxl"]
        assert await monitor.usable(0)
        version = monitor.version
        monitor.lost(GONE)
        assert monitor.version > version
        assert not await monitor.usable(0)
        await monitor.look()
        assert monitor.health.state is State.RESTARTED


async def test_elapsed_and_expected_time():
    async with page(endless=True, states=[running(1, 1)] * 3 + [running(1, 2)]) as (jobs, store, _, _monitor):
        batch = jobs.start(store.session("a"), "sdxl", "sdxl", requests(2))
        assert batch.remaining_s() is None
        await until(lambda: all(picture.step for picture in batch.pictures))
        assert batch.remaining_s() == 1.5
        assert batch.elapsed_s(batch.begun_at + 2) == 2
