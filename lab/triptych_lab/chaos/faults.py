"""What is done to a server, and how long it takes to serve again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from triptych import TriptychError

from .front import Front
from .load import IMPATIENT, PROBE, Callers
from .service import LOOP, Service

TRITON, FRONT = "tritonserver", "front"
PROBE_S = 0.1
NOT_BACK_S = 60.0
# One may wait for a dead process; more of them would be a load of their own, which others and the next ones wait for.
PROBES = 2
# Triton takes a process for dead that owes an answer for a second; `serve` tells of it after two seconds, and ends it after ten.
STOPPED_S = 5.0
# All may start again four times a minute before `serve` gives up.
RESTARTS_APART_S = 20.0


class Fault(NamedTuple):
    """`what` is done, to the process of this name where it is done to one."""

    what: str
    victim: str = ""

    @property
    def restarts(self) -> bool:
        """Whether all of Triton may start again for it."""
        return self.what == "stop" or self.victim in (LOOP, TRITON)


@dataclass
class Measured:
    """Seconds by fault: until the server told, and until it served again."""

    told: dict[Fault, list[float]] = field(default_factory=dict)
    back: dict[Fault, list[float]] = field(default_factory=dict)


def plan(seed: int, models: list[str]) -> Iterator[Fault]:
    """Faults without end: each once in an order of the seed's, then again in another."""
    order = random.Random(seed)  # noqa: S311 - to be repeated
    one_each = [
        *(Fault("kill", model) for model in [*models, TRITON]),
        *(Fault("stop", name) for name in (LOOP, TRITON)),
        *(Fault(what) for what in ("burst", "cancels", "wrong", FRONT)),
    ]
    while True:
        stopped = Fault("stop", order.choice([model for model in models if model != LOOP]))
        yield from order.sample([*one_each, stopped], len(one_each) + 1)


async def commit(fault: Fault, service: Service, front: Front, callers: Callers, measured: Measured) -> None:
    """Do it, and wait until the server serves again."""
    if fault.what == "burst":
        await callers.burst(40, cancelled=False)
    elif fault.what == "cancels":
        await callers.burst(200, cancelled=True)
    elif fault.what == FRONT:
        await asyncio.to_thread(front.restart)
    elif fault.what == "wrong":
        await callers.wrong()
    elif fault.what == "kill":
        await kill(fault, service, callers, measured)
    else:
        await stop(fault, service, callers, measured)


async def kill(fault: Fault, service: Service, callers: Callers, measured: Measured) -> None:
    """Kill -9, and ask until there is a picture."""
    process, began = service.named(fault.victim), time.monotonic()
    process.kill()
    measured.back.setdefault(fault, []).append(await back(callers) - began)


async def stop(fault: Fault, service: Service, callers: Callers, measured: Measured) -> None:
    """SIGSTOP for a few seconds; the server must tell before they are over. What Triton gave up meanwhile is replaced."""
    process, began = service.named(fault.victim), time.monotonic()
    process.suspend()
    try:
        told = await asyncio.to_thread(service.said, ["stands still"], began, STOPPED_S)
        measured.told.setdefault(fault, []).append(told)
    except TimeoutError:
        measured.told.setdefault(fault, []).append(float("inf"))
    finally:
        process.resume()
    resumed = time.monotonic()
    measured.back.setdefault(fault, []).append(await back(callers) - resumed)


async def back(callers: Callers) -> float:
    """When the first of many requests is a picture; some are on their way at any time, should one get lost."""
    ends = time.monotonic() + NOT_BACK_S
    asked: set[asyncio.Task[bytes]] = set()
    try:
        while time.monotonic() < ends:
            if len(asked) < PROBES:
                asked.add(asyncio.ensure_future(callers.draw(PROBE, IMPATIENT)))
            done, asked = await asyncio.wait(asked, timeout=PROBE_S, return_when=asyncio.FIRST_COMPLETED)
            if any(not isinstance(task.exception(), TriptychError) for task in done):
                return time.monotonic()
            if done:
                await asyncio.sleep(PROBE_S / 2)
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    return float("inf")
