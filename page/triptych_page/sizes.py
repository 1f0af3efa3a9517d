"""Sizes to choose from: the shapes that people ask for, on the sides that a model can draw, in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Width to height, as people ask for them; SDXL was trained on pictures of these shapes.
SHAPES = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))


def nearest_side(wanted: float, sides: Sequence[int]) -> int:
    """Give the legal side that is nearest; of two the smaller."""
    return min(sides, key=lambda side: (abs(side - wanted), side))


def presets(width: int, height: int, sides: Sequence[int]) -> list[tuple[int, int]]:
    """Give (width, height) of each shape with about the model's own number of pixels, its own size first."""
    area = width * height
    shaped = ((math.sqrt(area * wide / high), math.sqrt(area * high / wide)) for wide, high in SHAPES)
    found = [(nearest_side(wide, sides), nearest_side(high, sides)) for wide, high in shaped]
    return list(dict.fromkeys([(width, height), *found]))
