"""Read perf_analyzer's files."""

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
    """The mean seconds of a request in one model of an ensemble, and how many of them it was queued."""

    latency_s: float
    queue_s: float


@dataclass(frozen=True)
class Result:
    """The result of one measurement.

    Attributes:
        latencies_s: of each request, in seconds, in the order of the answers.
        parts: by name, the models of an ensemble.
        cache_hit_s: above 0 if Triton's response cache answered some requests to this model.
        delayed: the share of requests that were sent later than planned.
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
        """Return it for our report."""
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
    """Read the files that a measurement left.

    Raises:
        BenchError: a file is missing, or is not as perf_analyzer writes it.
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
    """Read the one row of a report, by column; times in microseconds, as perf_analyzer writes them.

    Raises:
        BenchError: the file is missing, or does not have one row.
    """
    try:
        with path.open(newline="") as file:
            (row,) = csv.DictReader(file)
        return {column: float(value) for column, value in row.items() if value}
    except (OSError, ValueError, TypeError) as error:
        raise BenchError(f"perf_analyzer: no report of one row in {path} ({error})") from None


def read_profile(path: Path) -> list[float]:
    """Read the seconds from sending to the answer of every request.

    If an answer is an image, the export is not valid JSON, since the image's raw bytes are in it. So the times, which come
    before them, are found by a pattern.

    Raises:
        BenchError: the file is missing, holds no request, or not as many answers as requests.
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
    """Read the parts of an ensemble off what perf_analyzer printed; empty for other models."""
    _, _, composing = log.partition("Composing models:")
    found = ((model, _REQUEST.search(words)) for model, words in _COMPOSING.findall(composing))
    return {model: Part(int(times[1]) / 1e6, int(times[2]) / 1e6) for model, times in found if times}
