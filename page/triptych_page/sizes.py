"""Which sides a model can draw, in pixels, from the card that `describe` gives of it."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from typing import Any

from triptych.errors import InvalidRequest, invalid

# Width to height, as people ask for them; SDXL was trained on pictures of these shapes.
SHAPES = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))


def sdxl_sides(card: Mapping[str, Any], multiple: int | None = None) -> tuple[int, ...]:
    """Every legal height or width of SDXL; a refiner may ask for a coarser `multiple`."""
    step = multiple or card["size_multiple"]
    return tuple(range(-(-card["min_size"] // step) * step, card["max_size"] + 1, step))


def cascade_sides(card: Mapping[str, Any]) -> tuple[int, ...]:
    """Every height or width that Stable Cascade's rounding to latents and back leaves as it is."""
    most = math.ceil(card["max_size"] / card["resolution_multiple"])
    sides = []
    for prior in range(card["prior_multiple"], most + 1, card["prior_multiple"]):
        latents = int(prior * card["latent_dim_scale"])
        side = latents * card["vqgan_scale_factor"]
        exact = math.ceil(side / card["resolution_multiple"]) == prior
        if latents and latents % card["latent_multiple"] == 0 and exact:
            sides.append(side)
    return tuple(side for side in sides if card["min_size"] <= side <= card["max_size"])


def check_side(name: str, given: int, sides: Sequence[int]) -> int:
    """`given`, which is one of `sides`.

    Raises:
        InvalidRequest: it is not; the message names the nearest.
    """
    if given in sides:
        return given
    raise illegal_side(name, given, sides)


def illegal_side(name: str, given: int, sides: Sequence[int]) -> InvalidRequest:
    at = bisect(sides, given)
    nearest = " or ".join(map(str, sides[max(0, at - 1) : at + 1]))
    return invalid(name, given, f"{len(sides)} sizes from {sides[0]} to {sides[-1]}, the nearest {nearest}")


def nearest_side(wanted: float, sides: Sequence[int]) -> int:
    """The legal side that is nearest; of two the smaller."""
    return min(sides, key=lambda side: (abs(side - wanted), side))


def presets(width: int, height: int, sides: Sequence[int]) -> list[tuple[int, int]]:
    """(width, height) of each shape with about the model's own number of pixels, its own size first."""
    area = width * height
    shaped = ((math.sqrt(area * wide / high), math.sqrt(area * high / wide)) for wide, high in SHAPES)
    found = [(nearest_side(wide, sides), nearest_side(high, sides)) for wide, high in shaped]
    return list(dict.fromkeys([(width, height), *found]))
