"""What perf_analyzer's files say."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BenchError
from .command import Measurement

QUANTILES = (50, 95, 99)
_SENT = re.compile(rb'\{"timestamp":(\d+),"request_inputs":')
_ANSWERED = re.compile(rb'"response_timestamps":\[(\d+)')
_COMPOSING = re.compile(r"^  (\w+), version: \d+\n(.*?)(?=^  \w|\Z|^\S)", re.DOTALL | re.MULTILINE)
_REQUEST = re.compile(r"Avg request latency: (\d+) usec \(overhead \d+ usec \+ queue (\d+) usec")
_LATE = re.compile(r"([\d.]+)% of the requests were delayed")


@dataclass(frozen=True)
class Part:
    """A composing model's mean time for a request, in seconds, and how much of it was queue."""

    latency_s: float
    queue_s: float


@dataclass(frozen=True)
class Result:
    """One measurement. Latencies in seconds; `latencies_s` holds each request's, by its answer.

    `parts` are an ensemble's stages. `cache_hit_s` above 0 says that Triton's response cache answered some requests of this
    model, `delayed` which share was sent later than planned.
    """

    measurement: Measurement
    throughput_per_s: float
    mean_s: float
    quantiles_s: dict[str, float]
    latencies_s: list[float] = field(repr=False)
    parts: dict[str, Part] = field(repr=False)
    cache_hit_s: float = 0.0
    delayed: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For our report."""
        return {
            "ensemble": self.measurement.ensemble,
            "model": self.measurement.model,
            "mode": self.measurement.level.mode.value,
            "value": self.measurement.level.value,
            "requests": len(self.latencies_s),
            "throughput_per_s": self.throughput_per_s,
            "latency_s": {"mean": self.mean_s, **self.quantiles_s},
            "parts": {
                name: {"latency_s": part.latency_s, "queue_s": part.queue_s} for name, part in self.parts.items()
            },
            "cache_hit_s": self.cache_hit_s,
            "delayed": self.delayed,
            "files": [f"{path.parent.name}/{path.name}" for path in self.measurement.files],
        }


def read(measurement: Measurement) -> Result:
    """Read the files of a measurement that was made.

    Raises:
        BenchError: a file is missing or not perf_analyzer's.
    """
    row, log = read_csv(measurement.csv), measurement.log.read_text("utf-8", "replace")
    latencies = read_profile(measurement.profile)
    late = _LATE.search(log)
    return Result(
        measurement,
        throughput_per_s=row["Inferences/Second"],
        mean_s=float(np.mean(latencies)),
        quantiles_s={f"p{q}": float(np.percentile(latencies, q)) for q in QUANTILES},
        latencies_s=latencies,
        parts=read_parts(log),
        cache_hit_s=row.get("Server Cache Hit", 0.0) / 1e6,
        delayed=float(late[1]) / 100 if late else 0.0,
    )


def read_csv(path: Path) -> dict[str, float]:
    """The one row of a report, by column; times in microseconds, as perf_analyzer writes them.

    Raises:
        BenchError: there is no such row.
    """
    try:
        with path.open(newline="") as file:
            (row,) = csv.DictReader(file)
        return {column: float(value) for column, value in row.items() if value}
    except (OSError, ValueError, TypeError) as error:
        raise BenchError(f"perf_analyzer: no report of one row in {path} ({error})") from None


def read_profile(path: Path) -> list[float]:
    """Seconds from sending to the answer, of every request.

    The export is no JSON where an answer is an image: its bytes stand there raw, inside quotes. What is wanted of it stands
    before them, so it is looked for and not parsed.

    Raises:
        BenchError: no request is found.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BenchError(f"perf_analyzer: no profile export ({error})") from None
    sent, answered = ([int(number) for number in found.findall(data)] for found in (_SENT, _ANSWERED))
    if not sent or len(sent) != len(answered):
        raise BenchError(f"perf_analyzer: {path} has {len(sent)} requests and {len(answered)} answers")
    return [(end - begin) / 1e9 for begin, end in zip(sent, answered, strict=True)]


def read_parts(log: str) -> dict[str, Part]:
    """An ensemble's composing models, from what perf_analyzer says; empty for a model that is none."""
    _, _, composing = log.partition("Composing models:")
    found = ((model, _REQUEST.search(words)) for model, words in _COMPOSING.findall(composing))
    return {model: Part(int(times[1]) / 1e6, int(times[2]) / 1e6) for model, times in found if times}
