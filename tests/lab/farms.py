"""Small farms for the simulator's tests."""

from __future__ import annotations

from functools import cache

from triptych_demo import demo_build
from triptych_lab.simulator import CostModel, Farm, Outcome, Planner, ServerSpec
from triptych_lab.workload import Arrival

PIXELS = 16 * 16


@cache
def planner() -> Planner:
    return Planner(demo_build())


def cost(base=0.004, per_row=0.002, **stages) -> CostModel:
    """Seconds that grow by a line with the rows, measured at one latent size."""
    return CostModel([("unet", PIXELS, rows, base + per_row * rows) for rows in (1, 2, 4, 8, 16, 32)], **stages)


def flat(seconds, **stages) -> CostModel:
    """Every batch takes as long."""
    return CostModel([("unet", PIXELS, rows, seconds) for rows in (1, 64)], **stages)


def farm(costs=None, servers=1, *, max_batch_rows=8, max_queue_seconds=1e9, **options) -> Farm:
    return Farm(ServerSpec(costs or cost(), max_batch_rows, max_queue_seconds), servers, **options)


def arrival(interval_s, steps=4, **given) -> Arrival:
    return Arrival(interval_s, {"prompt": "a fox", "num_inference_steps": steps, **given})


def server(farm, **outcome):
    """One server of a farm and its tallies."""
    tallies = Outcome(**outcome)
    return farm.start(tallies)[0], tallies
