"""What may be brought: how much, how fast, and how much by all together."""

from __future__ import annotations

import asyncio

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from triptych.errors import TriptychError
from triptych_api import gate
from triptych_api.app import _http, _refused
from triptych_api.gate import Bounded


@pytest.fixture
def behind():
    """An application behind the gate that reads, and then waits."""
    go = asyncio.Event()

    async def read(request):
        await request.body()
        app.read += 1
        await go.wait()
        return PlainTextResponse("read")

    app = Starlette(
        routes=[Route("/", read, methods=["POST"])],
        middleware=[Middleware(Bounded, most_bytes=100, within_s=0.2)],
        exception_handlers={TriptychError: _refused, HTTPException: _http},
    )
    app.go, app.read = go, 0
    return app


def asking(app):
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://x")


async def sent(*pieces, pause=0.0):
    for piece in pieces:
        await asyncio.sleep(pause)
        yield piece


@pytest.mark.parametrize("content", [b"x" * 101, lambda: sent(b"x" * 60, b"x" * 60)])
async def test_a_body_is_bounded_whether_it_says_its_length_or_not(behind, content):
    async with asking(behind) as client:
        answer = await client.post("/", content=content() if callable(content) else content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("length", ["-1", "x", "1e9", "9" * 100])
async def test_a_length_that_is_none_is_refused(behind, length):
    async with asking(behind) as client:
        answer = await client.post("/", content=sent(b"x"), headers={"content-length": length})
    assert answer.status_code == 413


async def test_a_body_that_does_not_come_is_let_go(behind):
    async with asking(behind) as client:
        answer = await client.post("/", content=sent(b"x", b"x", pause=1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (408, "too_slow")


async def test_all_together_hold_so_much_and_no_more(behind, monkeypatch):
    monkeypatch.setattr(gate, "HELD", 2)
    async with asking(behind) as client:
        held = [asyncio.ensure_future(client.post("/", content=b"x" * 100)) for _ in range(3)]
        while behind.read < 3:
            await asyncio.sleep(0)
        refused = await client.post("/", content=b"x")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_bodies")
        behind.go.set()
        assert [(await one).status_code for one in held] == [200] * 3
        assert (await client.post("/", content=b"x")).status_code == 200
