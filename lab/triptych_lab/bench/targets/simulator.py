"""Compare the simulator's latencies with measured ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import numpy as np

from triptych_lab.simulator import Farm, Planner, ServerSpec, simulate

from ..cost import cost_model, measured
from ..load import replay
from ..requests import arrivals_at
from ..serving import started
from ..target import Setting, Sides, Target, within

MEAN, P99 = "simulator_mean", "simulator_p99"


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Take latencies of mixed requests, in seconds: simulated with batch times of this process; measured through Triton."""
    farm, planner = Farm(ServerSpec(cost_model(measured(setting.build)))), Planner(setting.build)
    with started(setting.builds) as served:
        arrivals, told, run = arrivals_at(setting, setting.load), count(), count()

        def foretold() -> dict[str, float]:
            latency = simulate(arrivals(next(told)), planner, farm)["latency_s"]
            return {MEAN: latency["mean"], P99: latency["p99"]}

        def real() -> dict[str, float]:
            latencies = replay(served.url, arrivals(next(run))).latencies_s
            return {MEAN: float(np.mean(latencies)), P99: float(np.percentile(latencies, 99))}

        yield Sides(foretold, real)


TARGET = Target(
    "simulator",
    "latency that the simulator foretells from batch times ÷ measured latency, mixed steps, Poisson at 70% "
    "(--load) of what full batches carry",
    {MEAN: within(0.2), P99: within(0.2)},
    sides,
)
