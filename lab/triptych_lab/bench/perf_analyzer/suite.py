"""Sweep an ensemble and each of its stages over concurrencies and request rates."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from triptych_lab.workload import Arrival, Mix, make

from ..errors import BenchError
from . import data
from .binary import GET, too_old
from .command import LoadLevel, Measurement, Mode
from .results import Result, read
from .stages import Models, record

# How many different requests an input file has; perf_analyzer begins anew after the last.
REQUESTS = 16
# Of how many of them the inputs of each stage are recorded.
RECORDED = 2


class Loads(NamedTuple):
    """The loads of one model: concurrencies first, then Poisson rates, as shares of the best throughput at those."""

    concurrencies: Sequence[int]
    rate_shares: Sequence[float]
    requests: int  # the fewest at one load
    requests_per_user: int = 4

    def count(self, users: float) -> int:
        """Return how many requests to send with so many under way."""
        return max(self.requests, round(self.requests_per_user * users))


ENSEMBLE = Loads((1, 2, 4, 8, 16), (0.5, 0.7, 0.9), 32)
STAGE = Loads((1, 4), (0.7,), 32)


@dataclass(frozen=True)
class Suite:
    """What is measured: the loads of the ensemble and of each stage, and what the requests ask for."""

    ensemble: Loads = ENSEMBLE
    stage: Loads = STAGE
    mix: Mix = field(default_factory=Mix)
    timeout_s: float = 1800.0  # for one load

    @classmethod
    def quick(cls) -> Suite:
        """Make a suite that takes a minute on a small machine, to see that everything works."""
        return cls(Loads((1, 2), (0.5,), 4, 2), Loads((1,), (), 4), Mix({"num_inference_steps": (2, 4)}), 300.0)


class Subject(NamedTuple):
    """A model to measure, an ensemble or one of its stages, with the file of its requests."""

    ensemble: str
    model: str
    data: Path
    loads: Loads


Measure = Callable[[Measurement], Result]


def run(
    perf: Measure, models: Models, ensemble: str, folder: Path, suite: Suite, workload: Sequence[Arrival] = ()
) -> Iterator[Result]:
    """Measure an ensemble and its stages, and yield each result at once; a `workload` is sent at its own times as well.

    Raises:
        BenchError: perf_analyzer failed.
        TriptychError: the server failed.
    """
    folder = folder / ensemble  # two ensembles share models, which read different things in each
    folder.mkdir(parents=True, exist_ok=True)
    for subject in _subjects(models, ensemble, folder, suite):
        yield from sweep(perf, subject, folder)
    if workload:
        path = data.write(folder / f"{ensemble}.schedule.json", data.schedule(ensemble, workload))
        yield perf(
            Measurement(ensemble, ensemble, path, LoadLevel(Mode.SCHEDULE, len(workload), len(workload)), folder)
        )


def sweep(perf: Measure, subject: Subject, folder: Path) -> Iterator[Result]:
    """Measure one model at all its loads; the rates depend on the best throughput of the concurrencies."""
    best = 0.0
    for users in subject.loads.concurrencies:
        result = perf(_measurement(subject, folder, LoadLevel(Mode.CONCURRENCY, users, subject.loads.count(users))))
        best = max(best, result.throughput_per_s)
        yield result
    for share in subject.loads.rate_shares:
        level = LoadLevel(Mode.RATE, float(f"{share * best:.3g}"), subject.loads.requests)
        yield perf(_measurement(subject, folder, level))


def perform(binary: Path, url: str, timeout_s: float) -> Measure:
    """Return a function that measures with the perf_analyzer at `binary`; `url` is the server's gRPC address."""

    def perf(measurement: Measurement) -> Result:
        _execute(measurement.command(binary, url), measurement, timeout_s)
        return read(measurement)

    return perf


def requests(mix: Mix, count: int) -> Iterator[Mapping[str, Any]]:
    """Draw the parameters of `count` requests. They have no seed, so that no cache can answer them."""
    for arrival in islice(make(mix, rate=1.0), count):
        yield {name: value for name, value in arrival.parameters.items() if name != "seed"}


def _subjects(models: Models, ensemble: str, folder: Path, suite: Suite) -> Iterator[Subject]:
    asked = list(requests(suite.mix, REQUESTS))
    path = data.write(folder / f"{ensemble}.data.json", [data.scalars(ensemble, request) for request in asked])
    yield Subject(ensemble, ensemble, path, suite.ensemble)
    recorded: dict[str, list[Mapping[str, Any]]] = {}
    for request in asked[:RECORDED]:
        for stage in record(models, ensemble, request):
            recorded.setdefault(stage.model, []).extend(data.tensors(stage.inputs, batched=stage.batched))
    for model, read_by_it in recorded.items():
        path = data.write(folder / f"{model}.data.json", read_by_it)
        yield Subject(ensemble, model, path, suite.stage)


def _measurement(subject: Subject, folder: Path, level: LoadLevel) -> Measurement:
    return Measurement(subject.ensemble, subject.model, subject.data, level, folder)


def _execute(command: Sequence[str], measurement: Measurement, timeout_s: float) -> None:
    for path in measurement.files:  # of an earlier run: perf_analyzer writes no profile over another
        path.unlink(missing_ok=True)
    with measurement.log.open("w", encoding="utf-8") as log:
        try:
            done = subprocess.run(command, stdout=log, stderr=log, timeout=timeout_s, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BenchError(f"perf_analyzer: {error}") from None
    if done.returncode:
        raise BenchError(_failure(measurement, done.returncode))


def _failure(measurement: Measurement, code: int) -> str:
    words = measurement.log.read_text("utf-8", "replace")
    if missing := too_old(words):
        return f"perf_analyzer: it needs {missing}, which this machine lacks; get it by {GET}"
    last = next((line for line in reversed(words.splitlines()) if line.strip()), "it said nothing")
    return f"perf_analyzer: {measurement.model} at {measurement.level.name}: exit {code}, {last}; see {measurement.log}"
