"""perf_analyzer's command line for one measurement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

# Of its own accord it has four threads at a request rate, and so never more than four requests under way. Each thread takes
# its turn and, when all is done, still waits for its next one: more of them than requests would only make the end late.
MAX_THREADS = 256


class Mode(str, Enum):
    """How the load is made; each the name that perf_analyzer's profile export has for it."""

    CONCURRENCY = "concurrency"
    RATE = "request_rate"
    SCHEDULE = "fixed_schedule"


@dataclass(frozen=True)
class LoadLevel:
    """A load: so many requests under way, so many a second (Poisson), or those of a schedule at their times."""

    mode: Mode
    value: float
    requests: int

    @property
    def name(self) -> str:
        """For files and reports, as `concurrency-4`, `request_rate-1.25` or `fixed_schedule`."""
        return self.mode.value if self.mode is Mode.SCHEDULE else f"{self.mode.value}-{self.value:g}"

    def arguments(self) -> list[str]:
        """Its part of the command line.

        A count, since a window of time that holds few slow requests never becomes stable, and leaves no files; and one level
        a run, since a count goes with no range.
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
    """One run: a model, its input data, a load, and the folder that its files go to, one for each ensemble."""

    ensemble: str  # which the model belongs to, or is
    model: str
    data: Path
    level: LoadLevel
    folder: Path

    @property
    def csv(self) -> Path:
        """perf_analyzer's latency report."""
        return self._file("csv")

    @property
    def profile(self) -> Path:
        """perf_analyzer's export of every request; holds the answers' raw bytes, so that it is no JSON."""
        return self._file("profile.json")

    @property
    def log(self) -> Path:
        """What perf_analyzer said."""
        return self._file("log")

    @property
    def files(self) -> tuple[Path, ...]:
        """All that a run leaves."""
        return self.csv, self.profile, self.log

    def command(self, binary: Path, url: str) -> list[str]:
        """The command line; `url` is the server's gRPC address."""
        return [
            *(str(binary), "-m", self.model, "-i", "grpc", "-u", url, "--input-data", str(self.data)),
            *self.level.arguments(),
            *("-f", str(self.csv), "--verbose-csv", "--profile-export-file", str(self.profile)),
        ]

    def _file(self, suffix: str) -> Path:
        return self.folder / f"{self.model}.{self.level.name}.{suffix}"


def _count(requests: int) -> list[str]:
    return ["--request-count", str(requests)]
