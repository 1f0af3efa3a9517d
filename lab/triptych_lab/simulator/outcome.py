"""Count what became of the requests: latencies, goodput, rejections, batches."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from enum import Enum
from typing import Any

import numpy as np

from triptych_serving.job import Job

SLO = 5.0
QUANTILES = (50, 95, 99)


class Ending(str, Enum):
    """How a request ended: answered, refused by admission, or past its deadline."""

    COMPLETED = "completed"
    REJECTED = "rejected"
    EXPIRED = "expired"


class Outcome:
    """Counts of one run. Latencies are from arrival to answer, in seconds.

    A request is good if it is answered within `slo` times its solo time, which is what it takes alone on an idle server.
    Requests that arrive before `warmup_s` are served but not counted.
    """

    def __init__(self, *, slo: float = SLO, warmup_s: float = 0.0) -> None:
        self.slo, self.warmup_s = slo, warmup_s
        self.endings: Counter[Ending] = Counter()
        self.batches: Counter[int] = Counter()  # by number of rows
        self.latencies = array("d")
        self.waits = array("d")  # from submission to the loop to the first step
        self.good = 0
        self.found = 0  # sum over the counted requests of how many others were under way when they arrived
        self._under_way = 0
        self._ends: list[float] = []  # a heap: when each request that is under way ends, as far as that is known

    def arrive(self, now: float) -> None:
        """Count an arrival, and the requests that are under way then. Calls must be in the order of time."""
        while self._ends and self._ends[0] <= now:
            heapq.heappop(self._ends)
            self._under_way -= 1
        if now >= self.warmup_s:
            self.found += self._under_way
        self._under_way += 1

    def end(self, job: Job, ending: Ending, at: float, solo_s: float) -> None:
        """Count the end of a request. `at` may lie in the future; `solo_s` is what it would take alone, in seconds."""
        heapq.heappush(self._ends, at)
        if job.arrived < self.warmup_s:
            return
        self.endings[ending] += 1
        if ending is Ending.COMPLETED:
            latency = at - job.arrived
            self.latencies.append(latency)
            self.waits.append((job.started or 0.0) - job.submitted)
            self.good += latency <= self.slo * solo_s

    def step(self, rows: int) -> None:
        """Count a batch of so many rows."""
        self.batches[rows] += 1

    @property
    def counted(self) -> int:
        """How many requests are counted, those of the warm-up left out."""
        return sum(self.endings.values())

    def report(self, *, seconds: float, utilisation: float, servers: int) -> dict[str, Any]:
        """Report on a run whose counted requests arrived within `seconds`; docs/capacity.md explains the fields.

        `utilisation` is the share of the time in which the servers made steps.
        """
        batches, rows = sum(self.batches.values()), sum(rows * count for rows, count in self.batches.items())
        return {
            "servers": servers,
            "requests": self.counted,
            **{ending.value: self.endings[ending] for ending in Ending},
            "offered_per_s": _ratio(self.counted, seconds),
            "goodput_per_s": _ratio(self.good, seconds),
            "within_slo": _ratio(self.good, self.counted),
            "slo": self.slo,
            "latency_s": _spread(self.latencies),
            "wait_s": _spread(self.waits),
            "found_outstanding": _ratio(self.found, self.counted),
            "utilisation": utilisation,
            "rows_per_batch": _ratio(rows, batches),
            "batches": {str(size): count for size, count in sorted(self.batches.items())},
        }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _spread(seconds: array[float]) -> dict[str, float]:
    """Return mean and quantiles; nothing if there are no values."""
    if not seconds:
        return {}
    values = np.frombuffer(seconds)
    quantiles = dict(zip(QUANTILES, np.percentile(values, QUANTILES), strict=True))
    return {"mean": float(values.mean()), **{f"p{q}": float(value) for q, value in quantiles.items()}}
