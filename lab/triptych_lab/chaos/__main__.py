"""`python -m triptych_lab.chaos`: faults one after the other under load, a figure a line, exit code 1 where one is wrong."""

from __future__ import annotations

import asyncio
import math
import secrets
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import cycle
from typing import Annotated

import psutil
import typer

from triptych import AsyncClient

from .faults import RESTARTS_APART_S, Fault, Measured, commit, plan
from .front import Front
from .load import PICTURE, Callers
from .service import LOOP, Service

CALLERS = 6
PLANTS = ("loss", "doubled", "leak")
# Of the time, for the stages one by one; the rest is for everything.
STAGES_SHARE = 0.6
MOST_KILLS = 10
BACK = "is back", "ready after"  # in the server's words
BACK_S, RESTARTED_S, TOLD_S = 2.0, 10.0, 3.0
# What every kill happens under.
TOGETHER = ("4 steps", "30 steps", "mixed 0", "picture of 1100")


class Verdict:
    """Prints figures, and remembers whether one is wrong; seconds too if `times`."""

    def __init__(self, *, times: bool = True) -> None:
        self.wrong, self._times = 0, times

    def seconds(self, name: str, seconds: list[float], most: float) -> None:
        """Print the median and the worst of some times."""
        worst = max(seconds)
        told = f"{statistics.median(seconds):.2f} s, worst {worst:.2f} s of {len(seconds)}"
        self.figure(name, told, good=worst <= most or (not self._times and math.isfinite(worst)))

    def figure(self, name: str, value: object, *, good: bool = True) -> None:
        """Print a figure."""
        self.wrong += not good
        sys.stdout.write(f"{'' if good else 'WRONG  '}{name:<44} {value}\n")
        sys.stdout.flush()


async def stages_one_by_one(service: Service, callers: Callers, verdict: Verdict, seconds: float) -> None:
    """Kill each model's process but the loop's, in turn, while our client waits for pictures: it notices nothing."""
    async with AsyncClient(callers.url) as client:
        rows, measured, killed = {}, Measured(), 0
        together = [kind for kind in callers.kinds if kind.endswith(TOGETHER)]
        for kind in together:
            before = (await client.stats())["rows_total"]
            await callers.draw(kind)
            rows[kind] = (await client.stats())["rows_total"] - before
        before, ends = (await client.stats())["rows_total"], time.monotonic() + seconds
        stages = [model for model in service.models() if model != LOOP]
        errors = 0
        for stage in cycle(stages):
            if killed and (time.monotonic() > ends or killed == MOST_KILLS * len(stages)):
                break
            asked = [asyncio.ensure_future(callers.ask(kind)) for kind in together]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            process, began = service.named(stage), time.monotonic()
            process.kill()
            measured.back.setdefault(Fault("kill", stage), []).append(
                await asyncio.to_thread(service.said, BACK, began)
            )
            errors += (await asyncio.gather(*asked)).count(False)
            killed += 1
        drawn = (await client.stats())["rows_total"] - before
    tell_back(measured, verdict, BACK_S)
    restarts = service.restarts()
    verdict.figure("stages: restarts of everything", restarts, good=restarts == 0)
    verdict.figure("stages: callers that noticed", errors, good=errors == 0)
    if not restarts:  # which count from nothing
        twice = drawn - killed * sum(rows.values())
        verdict.figure("stages: rows drawn twice", f"{twice:.0f} of {drawn:.0f}", good=twice == 0)


async def storm(service: Service, callers: Callers, verdict: Verdict, seed: int, seconds: float) -> None:
    """All kinds of faults, one after the other, under all kinds of callers."""
    measured, done, restarted, ends = Measured(), 0, 0.0, time.monotonic() + seconds
    with Front(callers) as front:
        asking = [asyncio.ensure_future(callers.go_on(number)) for number in range(CALLERS)]
        asking.append(asyncio.ensure_future(front.go_on(seed)))
        for fault in plan(seed, service.models()):
            if done and time.monotonic() > ends:
                break
            if fault.restarts:
                await asyncio.sleep(restarted + RESTARTS_APART_S - time.monotonic())
                restarted = time.monotonic()
            await commit(fault, service, front, callers, measured)
            done += 1
        callers.over.set()
        await asyncio.wait(asking, timeout=120)
    verdict.figure("storm: faults", done)
    tell_back(measured, verdict, RESTARTED_S)
    for fault, told in measured.told.items():
        verdict.seconds(f"told: {fault.victim} stopped", told, TOLD_S)


def tell_back(measured: Measured, verdict: Verdict, most_s: float) -> None:
    """Print after how long the server served again."""
    for (what, victim), seconds in sorted(measured.back.items()):
        verdict.seconds(f"back after {what} {victim}", seconds, most_s)


async def drain(service: Service, callers: Callers, verdict: Verdict, requests: int) -> None:
    """SIGTERM with so many requests in flight: all end as pictures, and nothing is left."""
    kinds = [kind for kind, (_, inputs) in callers.kinds.items() if PICTURE not in inputs]
    below, run, regions = service.processes(), service.run, service.regions
    async with AsyncClient(callers.url) as client:
        before = (await client.stats())["completed_total"]
        asked = [asyncio.ensure_future(callers.ask(kinds[k % len(kinds)])) for k in range(requests)]
        arrived = 0.0
        while arrived < requests and not all(one.done() for one in asked):
            stats = await client.stats()
            arrived = stats["waiting"] + stats["running"] + stats["completed_total"] - before
    began = time.monotonic()
    code = await asyncio.to_thread(service.terminate, 300)
    images = (await asyncio.gather(*asked)).count(True)
    verdict.figure("drain: pictures", f"{images} of {requests}", good=images == requests)
    verdict.figure("drain: exit code", f"{code} after {time.monotonic() - began:.1f} s", good=code == 0)
    left = [process for process in below if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    nothing = not left and not regions() and not run.exists()
    verdict.figure(
        "at the end: processes, shared memory, folder", f"{len(left)}, {len(regions())}, {run.exists()}", good=nothing
    )


def tell_baseline(service: Service, before: tuple[int, int], verdict: Verdict) -> None:
    """Compare living processes and regions of shared memory with those of the beginning."""
    now = len(service.processes()), len(service.regions())
    verdict.figure("idle: processes", f"{now[0]} of {before[0]}", good=now[0] == before[0])
    verdict.figure("idle: regions of shared memory", f"{now[1]} of {before[1]}", good=now[1] == before[1])


def tell_ledger(callers: Callers, verdict: Verdict) -> None:
    """Print how everything ended that was sent."""
    figures = callers.ledger.figures()
    must_be_none = [*figures][[*figures].index("lost") :]
    for name, value in figures.items():
        verdict.figure(f"requests: {name}", value, good=name not in must_be_none or not value)
    for words, times in callers.ledger.errors():
        verdict.figure(f"  {times} times", words)


async def run(minutes: float, seed: int, drained: int, plant: Sequence[str], verdict: Verdict) -> None:
    """Start a server, do everything to it, and print the figures."""
    with Service() as service:
        async with Callers(service.url, seed, plant) as callers:
            before, began = (len(service.processes()), len(service.regions())), time.monotonic()
            await stages_one_by_one(service, callers, verdict, STAGES_SHARE * minutes * 60)
            if "leak" in plant:
                service.regions()[0].with_name(f"{service.run.name}_planted").touch()
            tell_baseline(service, before, verdict)
            await storm(service, callers, verdict, seed, (1 - STAGES_SHARE) * minutes * 60)
            tell_baseline(service, before, verdict)
            await drain(service, callers, verdict, drained)
            tell_ledger(callers, verdict)
            verdict.figure("seconds", f"{time.monotonic() - began:.0f}")
            for at, line in service.lines if verdict.wrong else ():
                verdict.figure(f"  serve, {at - began:.1f} s", line)


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long, without the start and the drain.")] = 10,
    seed: Annotated[int | None, typer.Option(help="Of the faults and the requests; drawn where none is given.")] = None,
    drained: Annotated[int, typer.Option(min=1, help="Requests in flight at the stop.")] = 200,
    times: Annotated[bool, typer.Option(help="Let what takes too long be wrong; on a busy machine it may.")] = True,
    plant: Annotated[
        list[str] | None, typer.Option(help="Faults of our own, which must be found: loss, doubled, leak.")
    ] = None,
) -> None:
    """Kill, stop and flood a server of the demo models while strangers ask, and account for every request."""
    if unknown := set(plant or ()).difference(PLANTS):
        raise typer.BadParameter(f"{', '.join(unknown)} given; legal: {', '.join(PLANTS)}")
    verdict, seed = Verdict(times=times), secrets.randbits(32) if seed is None else seed
    verdict.figure("seed", f"{seed}; the same faults and requests again: --seed {seed}")
    asyncio.run(run(minutes, seed, drained, plant or (), verdict))
    verdict.figure("wrong", verdict.wrong)
    raise typer.Exit(verdict.wrong > 0)


if __name__ == "__main__":
    typer.run(main)
