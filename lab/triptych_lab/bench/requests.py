"""The requests that are measured with; the same ones in every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from triptych_lab.workload import Arrival, Mix, load, make

from .cost import full_rate, measured
from .load import draw_all
from .target import Setting

STEPS = (4, 20, 50)
# Mixed requests arrive for so many seconds, but there are at least so many.
RUN_S, FEWEST = 15.0, 24
# Eight users, no two of whom ask for the same.
USERS = 8
VARIED = tuple(
    {"num_inference_steps": steps, "guidance_scale": guidance}
    for steps, guidance in ((20, 4.0), (25, 5.0), (12, 7.5), (30, 3.0), (20, 1.0), (15, 6.0), (28, 4.5), (22, 8.0))
)
SAME = {"num_inference_steps": 20, "guidance_scale": 4.0}


def varied(count: int) -> list[dict[str, Any]]:
    """Make requests that differ in steps, guidance and seed."""
    return [{**_prompt(k), **VARIED[k % USERS]} for k in range(count)]


def same(count: int, **settings: Any) -> list[dict[str, Any]]:
    """Make requests that differ in their seeds only."""
    return [{**_prompt(k), **(settings or SAME)} for k in range(count)]


def mixed(rate: float, count: int, seed: int = 0, steps: Sequence[int] = STEPS) -> list[Arrival]:
    """Make Poisson arrivals with these numbers of steps, each as likely; `rate` is in requests per second."""
    return list(make(Mix({"num_inference_steps": tuple(steps)}), rate=rate, count=count, seed=seed))


def arrivals_at(setting: Setting, share: float, steps: Sequence[int] = STEPS) -> Callable[[int], list[Arrival]]:
    """Return a function that makes the arrivals of each repeat.

    They are those of the setting's workload, at their own times; without one, mixed requests at `share` of the rate that this
    machine can serve in full batches, different ones in each repeat.
    """
    if setting.workload:
        given = list(load(setting.workload))
        return lambda _repeat: given
    rate = share * full_rate(measured(setting.build), fmean(steps))
    return lambda repeat: mixed(rate, count_at(setting, rate), repeat, steps)


def count_at(setting: Setting, rate: float) -> int:
    """Return how many requests a run at `rate` per second has."""
    return setting.count(max(FEWEST, round(rate * RUN_S)))


def solo_seconds(url: str, steps: Sequence[int] = STEPS) -> dict[int, float]:
    """Measure the seconds of a picture alone on an idle server, by its steps: the better of two."""
    return {count: min(_alone(url, count) for _ in range(2)) for count in steps}


def lateness(latencies: Sequence[float], arrivals: Sequence[Arrival], solo: Mapping[int, float], share: float) -> float:
    """Return the multiple of its solo time within which `share` of the requests were answered.

    Args:
        latencies: seconds, one for each of `arrivals`.
        solo: seconds that a request takes alone, by its steps.
    """
    alone = (solo[arrival.parameters["num_inference_steps"]] for arrival in arrivals)
    multiples = sorted(latency / seconds for latency, seconds in zip(latencies, alone, strict=True))
    return multiples[math.ceil(share * len(multiples)) - 1]


def _alone(url: str, steps: int) -> float:
    return draw_all(url, same(1, num_inference_steps=steps), users=1)


def _prompt(k: int) -> dict[str, Any]:
    return {"prompt": "a 3d render of a red apple", "seed": k}
