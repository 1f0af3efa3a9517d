"""Compare the choice of a server by seconds of work with Ray Serve's own, on simulated servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from triptych_lab.simulator import CostModel, Farm, Planner, ServerSpec, simulate
from triptych_lab.workload import Mix, make

from ..target import Setting, Sides, Target, at_least

NAME = "routing_p99"
SERVERS, REQUESTS, ROWS = 8, 8000, 16
# Of what servers with full batches carry. They make steps 80% of the time then, since batches are seldom full.
LOAD = 0.67
STEPS = (2, 4, 8, 20, 30, 50)
# A step of 1 to 16 rows on a device that is nearly full with one, as large models fill a GPU: seconds = 0.02 + 0.025 × rows.
FIXED_S, ROW_S = 0.02, 0.025


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Measure the 99th percentile of latencies of mixed requests, servers busy 80% of the time: by two choices, by seconds."""
    points = [("unet", 256, rows, FIXED_S + ROW_S * rows) for rows in (1, 2, 4, 8, ROWS)]
    spec, planner = ServerSpec(CostModel(points, encode_s=0.02, decode_s=0.05), ROWS), Planner(setting.build)
    rate = LOAD * SERVERS * ROWS / (FIXED_S + ROW_S * ROWS) / (2 * sum(STEPS) / len(STEPS))

    def p99(balancer: str, seed: int) -> dict[str, float]:
        arrivals = make(Mix({"num_inference_steps": STEPS}), rate=rate, count=setting.count(REQUESTS), seed=seed)
        report = simulate(arrivals, planner, Farm(spec, SERVERS, balancer))
        return {NAME: float(report["latency_s"]["p99"])}

    theirs, ours = count(), count()  # each repeat has other arrivals, the same for both sides
    yield Sides(lambda: p99("two-choices", next(theirs)), lambda: p99("least-seconds", next(ours)))


TARGET = Target(
    NAME,
    "p99 latency of 8 simulated servers that are busy 80% of the time, 2 to 50 steps: Ray Serve's choice ÷ the door's",
    {NAME: at_least(1.3)},
    sides,
)
