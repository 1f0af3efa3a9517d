"""Heads that do not come: the connection is closed, whoever was served before on it."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from triptych_web import hasty
from triptych_web.listening import Listening

WHOLE = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
async def connected(monkeypatch):
    """A connection to a server that waits half a second for a head and takes a second for an answer."""
    monkeypatch.setattr(hasty, "HEAD_S", 0.5)
    began = asyncio.Event()

    async def slow(_):
        await asyncio.sleep(1)
        return PlainTextResponse("done")

    listening = Listening("127.0.0.1", 0)
    serving = asyncio.ensure_future(
        listening.serve(Starlette(routes=[Route("/", slow)]), lambda _: began.set(), grace_s=0)
    )
    await began.wait()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(listening.address.rpartition(":")[2]))
    yield reader, writer
    writer.close()
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


@pytest.mark.parametrize("first", [b"", b"GET / HT"])
async def test_who_sends_no_whole_head_is_let_go(connected, first):
    reader, writer = connected
    writer.write(first)
    assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_an_answer_may_take_longer_and_the_next_head_may_not(connected):
    reader, writer = connected
    writer.write(WHOLE)
    assert (await asyncio.wait_for(reader.readuntil(b"done"), 5)).startswith(b"HTTP/1.1 200")
    writer.write(b"GET / HT")
    assert await asyncio.wait_for(reader.read(), 3) == b""


def test_answers_are_sent_without_waiting_for_a_receipt():
    listening = Listening("127.0.0.1", 0)
    assert listening._socket.proto == socket.IPPROTO_TCP  # else asyncio leaves Nagle's delay on
    listening._socket.close()
