"""Measure both sides in turns, A B A B …, so that whatever slows the machine down for a while slows both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from .target import Sides


@dataclass(frozen=True)
class Samples:
    """The figures of both sides for one ratio, one figure a repeat."""

    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The median of the repeats' ratios: the sides of one repeat have the same requests and run right after each other."""
        return median(self._ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest of the repeats' ratios."""
        return min(self._ratios), max(self._ratios)

    @property
    def _ratios(self) -> list[float]:
        return [one / other for one, other in zip(self.first, self.second, strict=True)]


def interleave(sides: Sides, repeats: int) -> dict[str, Samples]:
    """Measure both sides `repeats` times, in turns; return the samples by the name of the ratio."""
    rounds = [(sides.first(), sides.second()) for _ in range(repeats)]
    return {name: Samples(_column(rounds, 0, name), _column(rounds, 1, name)) for name in rounds[0][0]}


def _column(rounds: list[tuple[Mapping[str, float], Mapping[str, float]]], side: int, name: str) -> tuple[float, ...]:
    return tuple(measured[side][name] for measured in rounds)
