"""Send requests to a running server: at set times, or by a number of users who each wait for their picture."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych import Client
from triptych.async_client import AsyncClient
from triptych.errors import TriptychError
from triptych_contract.families import DEFAULT
from triptych_lab.workload import Arrival

from .errors import BenchError

# Seconds between two readings of the loop's counters.
WATCH_S = 0.25


@dataclass(frozen=True)
class Answer:
    """One answered request. `latency_s` counts from when the request was due, not from when it was sent.

    Otherwise a sender that falls behind would hide the wait that it causes (Tene's "coordinated omission").
    """

    due_s: float
    latency_s: float
    parameters: Mapping[str, Any] = field(repr=False)
    timings: Mapping[str, float] = field(repr=False)  # as the server reports them, in milliseconds


@dataclass(frozen=True)
class Counted:
    """The loop's counters, read `at_s` seconds after the start."""

    at_s: float
    batches: float
    rows: float


@dataclass(frozen=True)
class Replay:
    """All answers, in the order of the requests, and the loop's counters meanwhile."""

    answers: Sequence[Answer]
    counters: Sequence[Counted]

    @property
    def latencies_s(self) -> list[float]:
        """The latency of each request, in seconds."""
        return [answer.latency_s for answer in self.answers]

    def rows_per_batch(self) -> Iterator[tuple[float, float]]:
        """Yield, for each two successive readings, the later's time and the mean rows of the batches in between."""
        for before, after in zip(self.counters, self.counters[1:], strict=False):
            if after.batches > before.batches:
                yield after.at_s, (after.rows - before.rows) / (after.batches - before.batches)


def replay(url: str, arrivals: Iterable[Arrival], model: str = DEFAULT.name) -> Replay:
    """Send each request when it is due, whether or not those before it are answered: an open loop.

    Raises:
        BenchError: a request failed, which spoils the measurement.
    """
    return asyncio.run(_replay(url, list(arrivals), model))


def draw_all(url: str, requests: Sequence[Mapping[str, Any]], users: int, model: str = DEFAULT.name) -> float:
    """Measure the seconds that `users` take for all requests. Each sends one when its last is answered: a closed loop.

    Raises:
        BenchError: a request failed.
    """
    return asyncio.run(_draw_all(url, requests, users, model))


def pixels(url: str, request: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Draw one request; return its pixels, (height, width, 3) uint8."""
    with Client(url) as client:
        return np.asarray(client.generate(**request).image.convert("RGB"))


async def _replay(url: str, arrivals: Sequence[Arrival], model: str) -> Replay:
    async with AsyncClient(url, model=model) as client:
        began = time.monotonic()
        due = accumulate(arrival.interval_s for arrival in arrivals)
        counters: list[Counted] = []
        watching = asyncio.ensure_future(_watch(client, began, counters))
        sent = [_send(client, began, at, arrival.parameters) for at, arrival in zip(due, arrivals, strict=True)]
        try:
            answers = await asyncio.gather(*sent)
        finally:
            watching.cancel()
    return Replay(answers, counters)


async def _send(client: AsyncClient, began: float, due: float, parameters: Mapping[str, Any]) -> Answer:
    await asyncio.sleep(max(0.0, began + due - time.monotonic()))
    timings = await _draw(client, parameters)
    return Answer(due, time.monotonic() - began - due, parameters, timings)


async def _draw(client: AsyncClient, parameters: Mapping[str, Any]) -> Mapping[str, float]:
    try:
        return (await client.generate(**parameters)).timings
    except TriptychError as error:
        raise BenchError(f"a request of the measurement failed: {error}") from error


async def _watch(client: AsyncClient, began: float, counters: list[Counted]) -> None:
    """Read the counters until cancelled. A reading that fails is left out, and does not spoil the measurement."""
    while True:
        with contextlib.suppress(TriptychError):
            stats = await client.stats()
            counters.append(Counted(time.monotonic() - began, stats["batches_total"], stats["rows_total"]))
        await asyncio.sleep(WATCH_S)


async def _draw_all(url: str, requests: Sequence[Mapping[str, Any]], users: int, model: str) -> float:
    waiting = iter(requests)
    async with AsyncClient(url, model=model) as client:
        await client.ready()  # connected before the clock runs
        began = time.monotonic()
        await asyncio.gather(*(_user(client, waiting) for _ in range(users)))
        return time.monotonic() - began


async def _user(client: AsyncClient, waiting: Iterator[Mapping[str, Any]]) -> None:
    for parameters in waiting:
        await _draw(client, parameters)
