"""How requests end when something is odd: cancelled early, refused twice, watched in vain, or not sendable at all."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading

import numpy as np
import pytest

from triptych import AsyncClient, Client, Completed, InvalidRequest, Overloaded, RequestCancelled, ServerError
from triptych.errors import ServerUnavailable
from triptych.patience import MAX_WAIT_S
from triptych.transport import TritonTransport

from .fakes import FakeTransport

GONE = ServerUnavailable("no server is ready there", nothing_accepted=True)


class Verbs(FakeTransport):
    """Holds every request; answers each verb by `answer`."""

    def __init__(self, answer):
        super().__init__()
        self.hold.clear()
        self.answer = answer

    async def _verb(self, inputs):
        self.verbs.append(inputs["action"])
        return self.answer(inputs)


async def begun(client, **parameters):
    job = client.submit("a fox", **parameters)
    waiting = asyncio.ensure_future(job.get())
    await asyncio.sleep(0.01)
    return job, waiting


async def test_a_job_that_waits_for_its_next_attempt_is_cancelled_here():
    transport = FakeTransport(GONE)
    async with AsyncClient(transport=transport) as client:
        job, waiting = await begun(client)
        assert await job.cancel()
        with pytest.raises(RequestCancelled, match="by this client"):
            await waiting
    assert not transport.verbs
    assert len(transport.requests) == 1


async def test_a_job_whose_steps_are_over_when_it_is_cancelled_ends_as_cancelled():
    transport = Verbs(lambda _: {"cancelled": False})
    async with AsyncClient(transport=transport) as client:
        job, waiting = await begun(client)
        assert not await job.cancel()
        with pytest.raises(RequestCancelled) as error:
            await waiting
    assert error.value.request_id == job.id


async def test_a_cancel_does_not_outlast_a_job_that_ends_by_itself():
    class Waiting(Verbs):
        """As a server that does not know the job, and waits for it."""

        async def _verb(self, _inputs):
            self.hold.set()
            await asyncio.Event().wait()

    async with AsyncClient(transport=Waiting(None)) as client:
        job, waiting = await begun(client)
        assert await asyncio.wait_for(job.cancel(), 60) is False
        assert (await waiting).seed == job.seed


async def test_a_cancel_that_reaches_another_replica_is_sent_again():
    def answer(_):
        if len(transport.verbs) < 3:
            raise InvalidRequest(message="id: x given; legal: the id of a request of this tenant")
        return {"cancelled": True}

    transport = Verbs(answer)
    async with AsyncClient(transport=transport) as client:
        job, waiting = await begun(client)
        assert await job.cancel()
        with pytest.raises(RequestCancelled):
            await waiting
    assert transport.verbs == ["cancel"] * 3


@pytest.mark.parametrize("broken", [lambda _: {"not": "a state"}, lambda _: None, lambda _: 1 / 0])
async def test_whatever_a_watch_says_the_picture_comes(broken):
    transport = Verbs(broken)
    async with AsyncClient(transport=transport) as client:
        asyncio.get_running_loop().call_later(0.05, transport.hold.set)
        events = [event async for event in client.submit("a fox").iter_events()]
    assert [type(event) for event in events] == [Completed]


async def test_a_failure_that_nobody_asked_about_is_not_logged(caplog):
    with caplog.at_level(logging.ERROR, "asyncio"):
        async with AsyncClient(transport=FakeTransport(ServerError("broke"))) as client:
            client.submit("a fox")
            await asyncio.sleep(0.01)
        gc.collect()
    assert not caplog.records


async def test_a_full_queue_is_asked_again_when_it_said():
    transport = FakeTransport(Overloaded("queue: full", retry_after_s=0.6), b"image")
    async with AsyncClient(transport=transport) as client:
        began = asyncio.get_running_loop().time()
        await client.generate("a fox")
        assert asyncio.get_running_loop().time() - began >= 0.6


@pytest.mark.parametrize(("retry_after_s", "timeout"), [(MAX_WAIT_S + 1, None), (10, 5)])
async def test_a_wait_that_is_too_long_is_the_callers(retry_after_s, timeout):
    transport = FakeTransport(Overloaded("queue: full", retry_after_s=retry_after_s))
    async with AsyncClient(transport=transport) as client:
        with pytest.raises(Overloaded):
            await client.generate("a fox", timeout=timeout)
    assert len(transport.requests) == 1


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), "3", True, 1e9])
async def test_a_timeout_that_is_no_time_is_refused(timeout):
    async with AsyncClient(transport=FakeTransport()) as client:
        with pytest.raises(InvalidRequest, match=r"timeout: .*; legal: above 0 s"):
            await client.generate("a fox", timeout=timeout)


@pytest.mark.parametrize(
    ("n", "given", "message"),
    [
        (2, {"seed": 2**63 - 1}, "seed: 9223372036854775808 given"),
        (2, {"seed": 10**400}, "seed: 1000"),
        (2, {"seed": "7"}, "seed: '7' given; legal: a number"),
        (0, {}, "n: 0 given; legal: a whole number from 1"),
        ("2", {}, "n: '2' given"),
        (2, {"guidance_scale": 1e39}, "guidance_scale: 1e[+]39 given; legal: a number that 32 bits"),
        (2, {"guidance_scale": 10**400}, "guidance_scale: "),
    ],
)
async def test_of_many_none_is_sent_where_one_cannot_be(n, given, message):
    transport = FakeTransport()
    async with AsyncClient(transport=transport) as client:
        with pytest.raises(InvalidRequest, match=message):
            await client.generate_many("a fox", n, **given)
        await asyncio.sleep(0.01)
    assert not transport.requests


async def test_numpy_numbers_are_numbers():
    transport = FakeTransport()
    async with AsyncClient(transport=transport) as client:
        await client.generate("a fox", seed=np.int64(2**62 + 1), guidance_scale=np.float32(2.5))
    assert transport.requests[0]["seed"] == 2**62 + 1
    assert transport.requests[0]["guidance_scale"] == 2.5


async def test_an_answer_that_is_not_ours_is_the_servers_error():
    class Stranger(FakeTransport):
        async def infer(self, *_, **__):
            return {"image": b"", "resolved_seed": 1, "receipt": b"{}"}

    async with AsyncClient(transport=Stranger()) as client:
        with pytest.raises(ServerError, match="not Triptych's"):
            await client.generate("a fox")


async def test_a_certificate_asks_for_tls(tmp_path):
    with pytest.raises(FileNotFoundError):
        await TritonTransport("localhost:1", root_certificates=str(tmp_path / "none.pem")).ready()


def test_a_client_made_before_its_loop_works_in_it():
    client = AsyncClient("127.0.0.1:1")

    async def ready():
        async with client:
            return await client.ready()

    assert asyncio.run(ready()) is False


def test_the_sync_client_closes_once_and_leaves_no_thread():
    with Client("127.0.0.1:1") as client:
        client.close()
    with pytest.raises(TypeError):
        Client(nonsense=1)
    assert "triptych-client" not in [thread.name for thread in threading.enumerate()]
