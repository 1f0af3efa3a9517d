"""The sweeps: the ensemble and each of its stages, over concurrencies and request rates."""

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

# Different requests in an input file; perf_analyzer begins anew after the last.
REQUESTS = 16
RECORDED = 2


class Loads(NamedTuple):
    """What one model is put under: concurrencies, then shares of the best throughput seen, as Poisson rates."""

    concurrencies: Sequence[int]
    rate_shares: Sequence[float]
    requests: int  # at least, a level
    requests_per_user: int = 4

    def count(self, users: float) -> int:
        """Requests for a level with so many under way."""
        return max(self.requests, round(self.requests_per_user * users))


ENSEMBLE = Loads((1, 2, 4, 8, 16), (0.5, 0.7, 0.9), 32)
STAGE = Loads((1, 4), (0.7,), 32)


@dataclass(frozen=True)
class Suite:
    """All of a run: the loads for the ensemble and for each stage, and what is asked for."""

    ensemble: Loads = ENSEMBLE
    stage: Loads = STAGE
    mix: Mix = field(default_factory=Mix)
    timeout_s: float = 1800.0  # for one level

    @classmethod
    def quick(cls) -> Suite:
        """A minute on a small machine: enough to see that everything works."""
        return cls(Loads((1, 2), (0.5,), 4, 2), Loads((1,), (), 4), Mix({"num_inference_steps": (2, 4)}), 300.0)


class Subject(NamedTuple):
    """A model of an ensemble, or that itself, with the file of what it is sent."""

    ensemble: str
    model: str
    data: Path
    loads: Loads


Measure = Callable[[Measurement], Result]


def run(
    perf: Measure, models: Models, ensemble: str, folder: Path, suite: Suite, workload: Sequence[Arrival] = ()
) -> Iterator[Result]:
    """Every measurement of a plan, each as soon as it is made; with a `workload`, that at its own times as well.

    Raises:
        BenchError: perf_analyzer failed.
        TriptychError: the server did.
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
    """One model at all its loads; the rates follow from the throughput that the concurrencies had."""
    best = 0.0
    for users in subject.loads.concurrencies:
        result = perf(_measurement(subject, folder, LoadLevel(Mode.CONCURRENCY, users, subject.loads.count(users))))
        best = max(best, result.throughput_per_s)
        yield result
    for share in subject.loads.rate_shares:
        level = LoadLevel(Mode.RATE, float(f"{share * best:.3g}"), subject.loads.requests)
        yield perf(_measurement(subject, folder, level))


def perform(binary: Path, url: str, timeout_s: float) -> Measure:
    """Measurements by the real perf_analyzer against the server at `url` (gRPC)."""

    def perf(measurement: Measurement) -> Result:
        _execute(measurement.command(binary, url), measurement, timeout_s)
        return read(measurement)

    return perf


def requests(mix: Mix, count: int) -> Iterator[Mapping[str, Any]]:
    """Parameters of requests that no cache answers: without a seed every picture is a new one."""
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
