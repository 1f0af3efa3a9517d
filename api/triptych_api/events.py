"""Server-sent events, and answers that end when their caller goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse

from .errors import Refusal, refusal

T = TypeVar("T")
# Seconds of silence after which a comment is sent: proxies close what they hear nothing of.
SILENCE_S = 15.0
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
# Tasks that still tell the server that nobody waits any more.
_ending: set[asyncio.Future[Any]] = set()


class Gone(Refusal):
    """The caller went away; nobody reads this answer."""

    def __init__(self) -> None:
        super().__init__(499, "the caller went away", "cancelled")


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do some work, and cancel it as soon as the caller has gone; the body must have been read.

    Raises:
        Gone: it has.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Gone
    finally:
        gone.cancel()
        _end(task)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _end(task: asyncio.Future[Any]) -> None:
    if not task.done():
        task.cancel()
        _ending.add(task)
        task.add_done_callback(_ending.discard)


async def ended() -> None:
    """Wait until the server has been told of everything that was cancelled."""
    await asyncio.gather(*_ending, return_exceptions=True)


class Pumped:
    """Iterates in a task of its own.

    Starlette ends a stream by cancelling every `await` in it, which would cut short that the server is told.
    """

    def __init__(self, events: AsyncIterator[Mapping[str, Any]]) -> None:
        self._queue: asyncio.Queue[Mapping[str, Any] | None] = asyncio.Queue()
        self._task = asyncio.ensure_future(self._pump(events))

    async def _pump(self, events: AsyncIterator[Mapping[str, Any]]) -> None:
        try:
            async for event in events:
                self._queue.put_nowait(event)
        finally:
            self._queue.put_nowait(None)

    async def next(self) -> Mapping[str, Any] | None:
        """Give the next event, None after the last; raises what the iteration does."""
        event = await self._queue.get()
        if event is None:
            await self._task
        return event

    def close(self) -> None:
        """End the iteration where it is."""
        _end(self._task)


async def stream(events: AsyncIterator[Mapping[str, Any]]) -> StreamingResponse:
    """Answer with events, each named by its `type`. What fails before the first is an answer of its own.

    Raises:
        TriptychError: that of the first event.
    """
    pumped = Pumped(events)
    try:
        first = await pumped.next()
    except BaseException:
        pumped.close()
        raise
    return StreamingResponse(_written(first, pumped), media_type="text/event-stream", headers=HEADERS)


async def _written(event: Mapping[str, Any] | None, pumped: Pumped) -> AsyncIterator[str]:
    try:
        while event is not None:
            yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
            following = asyncio.ensure_future(pumped.next())
            while not (await asyncio.wait([following], timeout=SILENCE_S))[0]:
                yield ": waiting\n\n"
            event = following.result()
    except Exception as error:  # the status has been sent: OpenAI's SDKs raise an event of this name
        told = {"type": "error", **refusal(error).to_json()}
        yield f"event: error\ndata: {json.dumps(told)}\n\n"
    finally:
        pumped.close()
