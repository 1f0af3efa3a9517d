"""Whether the simulator tells the truth about this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from triptych.demo import demo_build
from triptych.simulator import Device, Farm, Planner, simulate

from ..cost import cost_model, measure
from ..load import replay
from ..requests import arrivals_at
from ..serving import started
from ..target import Pair, Setting, Target, within

MEAN, P99 = "simulator_mean", "simulator_p99"
LOAD = 0.7
REQUESTS = 30
REPEATS = 2


@contextmanager
def sides(setting: Setting) -> Iterator[Pair]:
    """Latencies of one mixed run, in seconds: foretold from batch times of this process; measured through Triton."""
    build = setting.builds[0] if setting.builds else demo_build()
    farm, planner = Farm(Device(cost_model(measure(build)))), Planner(build)
    with started(setting.builds) as served:
        arrivals = arrivals_at(setting, served.url, LOAD, REQUESTS)(0)

        def foretold() -> dict[str, float]:
            latency = simulate(arrivals, planner, farm)["latency_s"]
            return {MEAN: latency["mean"], P99: latency["p99"]}

        def measured() -> dict[str, float]:
            latencies = replay(served.url, arrivals).latencies_s
            return {MEAN: float(np.mean(latencies)), P99: float(np.percentile(latencies, 99))}

        yield Pair(foretold, measured)


TARGET = Target(
    "simulator",
    "latency that the simulator foretells from batch times ÷ measured latency, mixed steps, Poisson at 70% of what one "
    "request at a time carries",
    {MEAN: within(0.2), P99: within(0.2)},
    sides,
    most_repeats=REPEATS,
)
