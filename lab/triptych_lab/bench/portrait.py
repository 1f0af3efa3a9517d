"""Measure and simulate a server under rising load: the figures of the plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from triptych_lab.simulator import Farm, Planner, ServerSpec, simulate
from triptych_lab.workload import Arrival
from triptych_serving.policy import Policy

from .cost import cost_model, full_rate, measured
from .load import Answer, Replay, replay
from .policies import POLICIES
from .requests import STEPS, count_at, mixed
from .serving import started
from .target import Setting

# Loads, as shares of the rate that this machine can serve in full batches.
LOADS = (0.3, 0.5, 0.7, 0.85, 1.0)
SHOWN = 0.85
FORETOLD_LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SEED = 1
LONGEST_S = 10.0
PARTS = ("encoding", "queue", "steps", "decoding and file")


@dataclass(frozen=True)
class AtLoad:
    """Measured latencies at one load; `rate` is in requests per second."""

    load: float
    rate: float
    mean_s: float
    p95_s: float


@dataclass(frozen=True)
class Portrait:
    """The figures of all plots.

    Attributes:
        latencies: measured, one for each load.
        foretold: by policy, simulated pairs of (load, mean latency in seconds).
        rows: pairs of (seconds since the start, mean rows of a batch), measured at the load `SHOWN`.
        parts: by number of steps, the mean seconds of each of `PARTS` of a request.
    """

    latencies: Sequence[AtLoad]
    foretold: Mapping[str, Sequence[tuple[float, float]]]
    rows: Sequence[tuple[float, float]]
    parts: dict[int, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        """Return it for the JSON report."""
        return asdict(self)


def take(setting: Setting) -> Portrait:
    """Start a server, run all loads on it, and simulate them for each policy."""
    full = full_rate(measured(setting.build), fmean(STEPS))
    with started(setting.builds) as served:
        rates = {load: load * full for load in LOADS}
        runs = {load: replay(served.url, mixed(rate, count_at(setting, rate), seed=1)) for load, rate in rates.items()}
    latencies = [_at(load, rates[load], run) for load, run in runs.items()]
    curves = {name: list(foretell(setting, policy, full)) for name, policy in POLICIES.items()}
    return Portrait(latencies, curves, list(runs[SHOWN].rows_per_batch()), split(runs[SHOWN].answers))


def foretell(setting: Setting, policy: type[Policy], full: float) -> Iterator[tuple[float, float]]:
    """Yield loads with the simulated mean latency in seconds, up to the load at which it exceeds 10 s; `full` is load 1."""
    planner, farm = Planner(setting.build), Farm(ServerSpec(cost_model(measured(setting.build))), policy=policy)
    for load in FORETOLD_LOADS:
        mean = simulate(_arrivals(setting, load * full), planner, farm)["latency_s"]["mean"]
        if mean > LONGEST_S:
            return
        yield load, mean


def _arrivals(setting: Setting, rate: float) -> Sequence[Arrival]:
    """Make the requests to simulate: the same as those that are measured."""
    return mixed(rate, count_at(setting, rate), seed=SEED)


def _at(load: float, rate: float, run: Replay) -> AtLoad:
    return AtLoad(load, rate, fmean(run.latencies_s), float(np.percentile(run.latencies_s, 95)))


def split(answers: Sequence[Answer]) -> dict[int, dict[str, float]]:
    """Return the mean seconds of each of `PARTS` of a request's time on the server, by its number of steps."""
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
