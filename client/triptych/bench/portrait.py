"""A server under rising load: what the plots show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from .load import Answer, Run, replay
from .requests import mixed, rate_at, solo_seconds
from .serving import started
from .target import Setting

# Shares of what one request at a time can carry.
LOADS = (0.4, 0.7, 0.9, 1.1, 1.3)
REQUESTS = 20
SHOWN = 0.9
PARTS = ("encoding", "queue", "steps", "decoding and file")


@dataclass(frozen=True)
class AtLoad:
    """Latencies in seconds at one load, and the rate (requests per second) that it means here."""

    load: float
    rate: float
    mean_s: float
    p95_s: float


@dataclass(frozen=True)
class Portrait:
    """Latency by load; rows per batch over time (s) at one of the loads; mean seconds of a request by part, by its steps."""

    latencies: Sequence[AtLoad]
    rows: Sequence[tuple[float, float]]
    parts: dict[int, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def take(setting: Setting) -> Portrait:
    """Run the loads on a server of their own."""
    with started(setting.builds) as served:
        solo = solo_seconds(served.url)
        runs = {load: replay(served.url, mixed(rate_at(load, solo), setting.count(REQUESTS), seed=1)) for load in LOADS}
    latencies = [_at(load, rate_at(load, solo), run) for load, run in runs.items()]
    return Portrait(latencies, list(runs[SHOWN].rows_per_batch()), split(runs[SHOWN].answers))


def _at(load: float, rate: float, run: Run) -> AtLoad:
    return AtLoad(load, rate, fmean(run.latencies_s), float(np.percentile(run.latencies_s, 95)))


def split(answers: Sequence[Answer]) -> dict[int, dict[str, float]]:
    """Mean seconds of each part of a request's time on the server, by its steps."""
    steps = sorted({int(answer.parameters["num_inference_steps"]) for answer in answers})
    return {
        count: _means([answer for answer in answers if answer.parameters["num_inference_steps"] == count])
        for count in steps
    }


def _means(answers: Sequence[Answer]) -> dict[str, float]:
    columns = zip(*(_parts(answer) for answer in answers), strict=True)
    return {part: fmean(column) for part, column in zip(PARTS, columns, strict=True)}


def _parts(answer: Answer) -> Iterator[float]:
    timings = answer.timings
    known = [timings[name] for name in ("before_ms", "queue_ms", "denoise_ms")]
    yield from (milliseconds / 1000 for milliseconds in (*known, timings["total_ms"] - sum(known)))
