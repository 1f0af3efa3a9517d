"""Measure the cost file of this machine for `triptych simulate`: seconds of batches, run in this process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from typing import Any

from triptych_contract.families import DEFAULT
from triptych_lab.simulator import CostModel
from triptych_serving.invariance import example
from triptych_serving.manifest import Manifest
from triptych_serving.ort import OrtDenoiser

from .bare import GUIDED, BareSdxl
from .load import draw_all
from .serving import started

ROWS = (1, 2, 4, 8, 16)
REPEATS = 5
# The guided picture that is drawn alone to find out what a request takes beside its steps.
ALONE: dict[str, Any] = {"prompt": "a 3d render of a red apple", "num_inference_steps": 4, "guidance_scale": 4.0}


def measure(build: Path, rows: Sequence[int] = ROWS, repeats: int = REPEATS) -> dict[str, Any]:
    """Time batches of each number of rows in each denoiser of a build, at the model's own size; the median of `repeats`.

    What a request takes beside its steps is measured on a server that is started for that. `rows` must contain 2, the rows of
    a guided request.

    Returns:
        A document as `CostModel.load` reads it. `shared` is true: on a CPU all stages share the device.
    """
    manifest = Manifest.load(build)
    names = [name for name in manifest.model.denoisers if name in manifest.stages]
    points = [point for name in names for point in _points(manifest, name, rows, repeats)]
    document = {"model": manifest.model.name, "points": points, "encode_s": 0.0, "decode_s": 0.0, "shared": True}
    return {**document, **_around(build, document, repeats)} if manifest.family == DEFAULT.name else document


@lru_cache(maxsize=4)
def measured(build: Path) -> dict[str, Any]:
    """`measure`, but only once in a run, so that all comparisons use the same times."""
    return measure(build)


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a cost file, one point a line."""
    points = ",\n  ".join(json.dumps(point) for point in document["points"])
    others = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in document.items() if name != "points"]
    path.write_text("{\n" + ",\n".join([*others, f' "points": [\n  {points}\n ]']) + "\n}\n", "utf-8")


def cost_model(document: dict[str, Any]) -> CostModel:
    """Make the simulator's cost model from a measured document."""
    points = (
        (one["denoiser"], one["height"] * one["width"], one["rows"], one["seconds"]) for one in document["points"]
    )
    stages = {name: document[name] for name in ("encode_s", "decode_s", "shared")}
    return CostModel(points, **stages)


def full_rate(document: dict[str, Any], steps: float) -> float:
    """Return how many guided requests per second a device can serve, in batches of the size at which it is quickest.

    Args:
        document: the device's times, as `measure` returns them.
        steps: the mean steps of a request.
    """
    return 1 / _seconds_of_one(document, steps, GUIDED * min(s / rows for rows, s in _by_rows(document).items()))


def attainable(document: dict[str, Any], steps: float) -> float:
    """Return `full_rate` as a multiple of the rate at which the device serves guided requests one at a time."""
    return full_rate(document, steps) * _seconds_of_one(document, steps, _by_rows(document)[GUIDED])


def _seconds_of_one(document: dict[str, Any], steps: float, step_s: float) -> float:
    return float(document["encode_s"] + document["decode_s"] + steps * step_s)


def _by_rows(document: dict[str, Any]) -> dict[int, float]:
    return {one["rows"]: one["seconds"] for one in document["points"] if one["denoiser"] == "unet"}


def _points(manifest: Manifest, name: str, rows: Sequence[int], repeats: int) -> Iterator[dict[str, Any]]:
    denoiser, specs = OrtDenoiser(manifest.stage_path(name)), manifest.stages[name]["inputs"]
    for count in rows:
        sample, timestep, conditioning = example(specs, manifest.model.default_sizes, count)
        seconds = _seconds(partial(denoiser.predict, sample, timestep, conditioning), repeats)
        height, width = sample.shape[2:]
        yield {"denoiser": name, "height": height, "width": width, "rows": count, "seconds": seconds}


def _around(build: Path, document: dict[str, Any], repeats: int) -> dict[str, float]:
    """Measure what a request takes beside its steps: `decode_s` is the decoder's part, `encode_s` all the rest."""
    decode_s = _seconds(BareSdxl(build).decode, repeats)
    with started([build]) as served:
        alone = _seconds(lambda: draw_all(served.url, [ALONE], users=1), repeats)
    steps_s = ALONE["num_inference_steps"] * _by_rows(document)[GUIDED]
    return {"encode_s": max(0.0, alone - steps_s - decode_s), "decode_s": decode_s}


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """Time `work` and return the median in seconds; a first run, which warms up, does not count."""
    measured = []
    for _ in range(repeats + 1):
        began = time.monotonic()
        work()
        measured.append(time.monotonic() - began)
    return median(measured[1:])
