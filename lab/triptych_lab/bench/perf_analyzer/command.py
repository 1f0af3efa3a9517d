"""Make perf_analyzer's command line for one measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

# At a request rate perf_analyzer has four threads by default, and so at most four requests under way. But threads take turns,
# and at the end each still waits for its next turn: more threads than requests would only delay the end.
MAX_THREADS = 256


class Mode(str, Enum):
    """How the load is made; the values are perf_analyzer's own names, as in its profile export."""

    CONCURRENCY = "concurrency"
    RATE = "request_rate"
    SCHEDULE = "fixed_schedule"


@dataclass(frozen=True)
class LoadLevel:
    """A load: `value` requests under way, `value` requests a second (Poisson), or a schedule's requests at their times."""

    mode: Mode
    value: float
    requests: int

    @property
    def name(self) -> str:
        """A name for files and reports: `concurrency-4`, `request_rate-1.25` or `fixed_schedule`."""
        return self.mode.value if self.mode is Mode.SCHEDULE else f"{self.mode.value}-{self.value:g}"

    def arguments(self) -> list[str]:
        """Return its part of the command line.

        It asks for a number of requests and not for a window of time: with few slow requests a window never becomes stable, and
        then no files are written. And for one level a run, since a number of requests cannot be combined with a range.
        """
        if self.mode is Mode.CONCURRENCY:
            return [*_count(self.requests), "--concurrency-range", str(math.ceil(self.value))]
        threads = ["--max-threads", str(min(self.requests, MAX_THREADS))]
        if self.mode is Mode.SCHEDULE:
            return ["--fixed-schedule", *threads]
        span = f"{self.value:g}:{self.value:g}"  # without an end it is 1, which makes a range of rates below that
        rate = ["--request-rate-range", span, "--request-distribution", "poisson"]
        return [*_count(self.requests), *rate, *threads]


@dataclass(frozen=True)
class Measurement:
    """One run of perf_analyzer: a model, its input data, a load, and the folder for its files, one for each ensemble."""

    ensemble: str  # that the model belongs to, or that it is
    model: str
    data: Path
    level: LoadLevel
    folder: Path

    @property
    def csv(self) -> Path:
        """The path of perf_analyzer's latency report."""
        return self._file("csv")

    @property
    def profile(self) -> Path:
        """The path of perf_analyzer's export of all requests; with the raw bytes of answers in it, it is not valid JSON."""
        return self._file("profile.json")

    @property
    def log(self) -> Path:
        """The path of what perf_analyzer printed."""
        return self._file("log")

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths of all files that a run leaves."""
        return self.csv, self.profile, self.log

    def command(self, binary: Path, url: str) -> list[str]:
        """Return the command line; `url` is the server's gRPC address."""
        return [
            *(str(binary), "-m", self.model, "-i", "grpc", "-u", url, "--input-data", str(self.data)),
            *self.level.arguments(),
            *("-f", str(self.csv), "--verbose-csv", "--profile-export-file", str(self.profile)),
        ]

    def _file(self, suffix: str) -> Path:
        return self.folder / f"{self.model}.{self.level.name}.{suffix}"


def _count(requests: int) -> list[str]:
    return ["--request-count", str(requests)]
