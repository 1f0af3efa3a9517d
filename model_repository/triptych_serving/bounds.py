"""What a stage takes, by its build: checked before anything is spent on it, whoever calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych_contract.errors import InvalidRequest, Problem

from .manifest import Manifest


class Bounds:
    """The sizes and values of one stage's inputs. Types, fixed sizes and the number of rows are Triton's to check."""

    def __init__(self, manifest: Manifest, stage: str) -> None:
        self._inputs: Mapping[str, Any] = manifest.stages[stage]["inputs"]
        smallest, largest = manifest.model.smallest_sizes, manifest.model.largest_sizes
        self._sides = {dim: (low, largest[dim]) for dim, low in smallest.items()}

    def check(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Check every input.

        Raises:
            InvalidRequest: names each tensor, what was given and what is legal.
        """
        problems = [
            problem
            for name, array in arrays.items()
            if name in self._inputs  # the adapters that rows wear are judged by who looks them up
            for problem in self._problems(name, array, self._inputs[name])
        ]
        if problems:
            raise InvalidRequest(problems)

    def _problems(self, name: str, array: NDArray[Any], spec: Mapping[str, Any]) -> list[Problem]:
        for dim, given in zip(spec["shape"][1:], array.shape[1:], strict=True):
            low, high = self._sides.get(dim, (dim, dim))
            if not low <= given <= high:
                return [Problem(name, f"{dim} {given}", f"{low} … {high}")]
        return [] if (wrong := _wrong(array, spec.get("limit"))) is None else [Problem(name, *wrong)]


def _wrong(array: NDArray[Any], limit: int | None) -> tuple[str, str] | None:
    """The first illegal value, and what is legal."""
    if array.dtype.kind == "f":
        good, legal = np.isfinite(array), "finite numbers"
    elif limit is not None:
        good, legal = (array >= 0) & (array < limit), f"0 … {limit - 1}"
    else:
        return None
    return None if good.all() else (str(array[~good][0]), legal)
