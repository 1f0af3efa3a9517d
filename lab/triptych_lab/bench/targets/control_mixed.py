"""Compare what users wait who share their batches with one who follows a picture (ControlNet), with a plain one in the place."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean
from typing import Any

from PIL import Image, ImageDraw

from triptych_lab.workload import Arrival

from ..load import replay
from ..peers.weights import control_of, exported, weights_of
from ..requests import USERS, same
from ..serving import started
from ..target import Setting, Sides, Target, at_most

NAME = "control_mixed"
ROUNDS = 3


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Measure the mean seconds of seven pictures: beside an eighth that follows a picture, beside one that does not."""
    weights = weights_of(setting)
    control = control_of(weights, setting.output / "peers")
    build = exported(weights, setting.output / "peers", "control", f"--control=edges={control}", "--sampler=euler")
    rounds = setting.count(ROUNDS)
    with started([build]) as served:
        yield Sides(
            lambda: {NAME: fmean(_seconds(served.url, _followed(k), k) for k in range(rounds))},
            lambda: {NAME: fmean(_seconds(served.url, {}, k) for k in range(rounds))},
        )


def _seconds(url: str, beside: Mapping[str, Any], round_: int) -> float:
    """Draw eight pictures at once; of all but the last the mean seconds."""
    requests: list[dict[str, Any]] = [{**one, "seed": one["seed"] + round_ * USERS} for one in same(USERS)]
    requests[-1] |= beside
    return fmean(replay(url, [Arrival(0.0, one) for one in requests]).latencies_s[:-1])


def _followed(round_: int) -> dict[str, Any]:
    image, file = Image.new("L", (128, 128)), io.BytesIO()
    ImageDraw.Draw(image).ellipse((16, 16 + round_, 112, 112), outline=255, width=2)
    image.save(file, "PNG")
    return {"control": "edges", "control_images": [file.getvalue()]}


TARGET = Target(
    NAME,
    "what seven users wait who share their batches with an eighth: one who follows a picture with a control ÷ one who does not",
    {NAME: at_most(1.2)},
    sides,
    needs_weights=True,
)
