"""How long a device takes for a batch, from measured points. A cost file is

    {
      "points": [{"denoiser": "unet", "height": 16, "width": 16, "rows": 2, "seconds": 0.016}, …],
      "encode_s": 0.012, "decode_s": 0.034, "shared": true
    }

`height` and `width` are those of the latents. `encode_s` and `decode_s` are the seconds that a request takes before and after
the loop when it is alone. `shared` says that this work runs on the loop's device, as on a CPU, and not on another.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from triptych.errors import invalid

FIELDS = ("denoiser", "height", "width", "rows", "seconds")


MAX_NUMBER = 2**31  # of pixels, rows, seconds


@dataclass(frozen=True)
class Curve:
    """Seconds of a batch by its rows, at one latent size: linear between the measured points."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __call__(self, rows: float) -> float:
        """Return seconds. Below the first point they are that point's; beyond the last, the last line goes on."""
        if rows <= self.rows[0]:
            return self.seconds[0]
        if len(self.rows) == 1:
            return self.seconds[0] * rows / self.rows[0]
        right = min(bisect_left(self.rows, rows), len(self.rows) - 1)
        (x, y), (x_right, y_right) = ((self.rows[k], self.seconds[k]) for k in (right - 1, right))
        return y + (y_right - y) * (rows - x) / (x_right - x)


class CostModel:
    """Estimate the seconds of a batch by denoiser, rows and latent pixels.

    If a point was measured more than once, the median counts. No batch takes less than a smaller one. At a latent size that was
    not measured, a batch takes as long as one with as many pixels in all at the nearest measured size.
    """

    def __init__(
        self,
        points: Iterable[tuple[str, int, int, float]],
        *,
        encode_s: float = 0.0,
        decode_s: float = 0.0,
        shared: bool = False,
    ) -> None:
        """Take measured points, each (denoiser, latent pixels, rows, seconds)."""
        self.encode_s, self.decode_s, self.shared = encode_s, decode_s, shared
        measured: dict[str, dict[int, dict[int, list[float]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )
        for denoiser, pixels, rows, seconds in points:
            measured[denoiser][pixels][rows].append(seconds)
        self.curves = {name: {pixels: _curve(at) for pixels, at in sizes.items()} for name, sizes in measured.items()}
        self._known: dict[tuple[str, int, int], float] = {}

    @classmethod
    def load(cls, path: Path) -> CostModel:
        """Read a file of measured points.

        Raises:
            InvalidRequest: something in it is wrong; names the field and the point.
        """
        document = _document(path)
        points = [_point(k, point) for k, point in enumerate(document["points"])]
        return cls(points, **_stages(document))

    def seconds(self, denoiser: str, rows: int, pixels: int) -> float:
        """Estimate the seconds of one batch of `rows` rows, each of `pixels` latent pixels.

        Raises:
            InvalidRequest: no point of this denoiser was measured.
        """
        key = (denoiser, rows, pixels)
        if key not in self._known:
            self._known[key] = self._estimate(*key)
        return self._known[key]

    def per_cost(self) -> dict[str, float]:
        """Estimate seconds per row and latent pixel, by denoiser, as a server does when it warms up: two rows, largest size."""
        sizes = {name: max(curves) for name, curves in self.curves.items()}
        return {name: self.seconds(name, 2, pixels) / (2 * pixels) for name, pixels in sizes.items()}

    def _estimate(self, denoiser: str, rows: int, pixels: int) -> float:
        if denoiser not in self.curves:
            raise invalid(
                "points", f"none of {denoiser}", f"measured points of each model in use, as {_names(self.curves)}"
            )
        curves = self.curves[denoiser]
        nearest = min(curves, key=lambda known: abs(math.log(known / pixels)))
        return curves[nearest](rows * pixels / nearest)


def _curve(measured: Mapping[int, list[float]]) -> Curve:
    rows = sorted(measured)
    return Curve(tuple(rows), tuple(accumulate((median(measured[row]) for row in rows), max)))


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "unet"


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except (RecursionError, ValueError) as error:
        raise invalid("cost", f"{path}, no JSON ({error})", "a JSON object with points") from None
    if not isinstance(document, dict) or not isinstance(document.get("points"), list) or not document["points"]:
        raise invalid("points", f"none in {path}", "a list of measured points, each with " + ", ".join(FIELDS))
    return document


def _point(k: int, point: Any) -> tuple[str, int, int, float]:
    """Check point `k` of a file; return (denoiser, latent pixels, rows, seconds)."""
    if not isinstance(point, dict) or not isinstance(point.get("denoiser"), str):
        raise invalid(f"points[{k}]", json.dumps(point), "an object with " + ", ".join(FIELDS))
    height, width, rows = (_whole(f"points[{k}].{name}", point.get(name)) for name in ("height", "width", "rows"))
    return point["denoiser"], height * width, rows, _seconds(f"points[{k}].seconds", point.get("seconds"), above=0.0)


def _stages(document: Mapping[str, Any]) -> dict[str, Any]:
    shared = document.get("shared", False)
    if not isinstance(shared, bool):
        raise invalid("shared", json.dumps(shared), "true or false")
    seconds = {name: _seconds(name, document.get(name, 0.0)) for name in ("encode_s", "decode_s")}
    return {**seconds, "shared": shared}


def _whole(field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < MAX_NUMBER:
        raise invalid(field, json.dumps(value), "a whole number from 1")
    return value


def _seconds(field: str, value: Any, above: float = -math.inf) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not max(above, -1e-300) < value < MAX_NUMBER:
        raise invalid(field, json.dumps(value), "seconds, above 0" if above == 0.0 else "seconds, 0 or more")
    return float(value)
