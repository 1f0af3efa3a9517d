"""`python -m triptych_lab.chaos.soak`: an hour of steady load; how much each process's memory grows, and how sure that is."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import psutil
import typer

from .__main__ import Verdict, tell_ledger
from .load import Callers
from .service import RESTART, Service

CALLERS = 4
SAMPLE_S, LEAST_SAMPLES = 5.0, 10
# Of the time, in which caches fill and allocators settle.
WARM_UP = 0.3
# Between two steady halves memory may grow by so much.
MOST_SHARE, MOST_MB = 0.02, 10.0


class Growth(NamedTuple):
    """Of one process's memory, in MB: its mean in the first half and how much more in the second; slope and error by the hour."""

    mean: float
    more: float
    slope: float
    error: float

    @property
    def fits(self) -> bool:
        """Whether it is no more than a steady process may grow."""
        return self.more <= max(MOST_SHARE * self.mean, MOST_MB)

    def __str__(self) -> str:
        return f"{self.mean:.0f} MB, {self.more:+.1f} MB in the second half; {self.slope:+.1f} ± {self.error:.1f} MB/h"


def growth(samples: Sequence[tuple[float, float]]) -> Growth:
    """Of samples (seconds, MB): least squares, with the standard error of the slope."""
    seconds, sizes = zip(*samples, strict=True)
    half = len(samples) // 2
    first, second = statistics.fmean(sizes[:half]), statistics.fmean(sizes[half:])
    fit = statistics.linear_regression(seconds, sizes)
    residuals = sum((size - fit.intercept - fit.slope * at) ** 2 for at, size in samples)
    middle = statistics.fmean(seconds)
    spread = sum((at - middle) ** 2 for at in seconds)
    error = math.sqrt(residuals / (len(samples) - 2) / spread)
    return Growth(first, second - first, fit.slope * 3600, error * 3600)


async def steadily(callers: Callers, number: int) -> None:
    """Ask for one thing after the other until it is over."""
    draw = random.Random(f"{number}")  # noqa: S311 - to be repeated
    while not callers.over.is_set():
        await callers.ask(draw.choice([*callers.kinds]))


def sample(service: Service) -> dict[str, float]:
    """The memory of each process in MB, by its model's name."""
    sizes = {name: service.named(name) for name in (*service.models(), "tritonserver")}
    sizes["serve"] = psutil.Process(service.process.pid)
    return {name: process.memory_info().rss / 1e6 for name, process in sizes.items()}


async def run(minutes: float, verdict: Verdict) -> None:
    """Ask for so long, look at the memory meanwhile, and print what became of it."""
    samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
    restarts = 0
    with Service() as service:
        async with Callers(service.url, 0) as callers:
            asking = [asyncio.ensure_future(steadily(callers, number)) for number in range(CALLERS)]
            began, ends = time.monotonic(), time.monotonic() + minutes * 60
            while (now := time.monotonic()) < ends:
                if service.restarts() > restarts:  # other processes, whose memory has to settle first
                    restarts, began = service.restarts(), now
                    samples.clear()
                if now - began > WARM_UP * minutes * 60:
                    with contextlib.suppress(psutil.Error):  # one that has just ended
                        for name, size in sample(service).items():
                            samples[name].append((now - began, size))
                await asyncio.sleep(min(SAMPLE_S, ends - now))
            callers.over.set()
            await asyncio.gather(*asking)
            tell_ledger(callers, verdict)
            for _, line in service.lines:
                if RESTART in line:
                    verdict.figure("restart of everything", line, good=False)
    enough = {name: of_one for name, of_one in samples.items() if len(of_one) >= LEAST_SAMPLES}
    if not enough:
        verdict.figure("memory", "not known: too short a time without a restart", good=False)
    for name, of_one in enough.items():
        grown = growth(of_one)
        verdict.figure(f"memory of {name}", grown, good=grown.fits)


def main(minutes: Annotated[float, typer.Option(min=1, help="How long.")] = 60) -> None:
    """Keep a server of the demo models busy and see whether its memory grows."""
    verdict = Verdict()
    asyncio.run(run(minutes, verdict))
    raise typer.Exit(verdict.wrong > 0)


if __name__ == "__main__":
    typer.run(main)
