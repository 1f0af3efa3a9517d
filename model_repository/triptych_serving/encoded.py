"""What the encoders pass on to the loop, read and checked: a wrong shape would fail a whole batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych_contract.errors import invalid

from .denoiser import Conditioning, Floats
from .manifest import TIMESTEPS

# The pictures that controls follow, (n, 3, height, width) uint8.
CONTROL_PICTURES = "control_pictures"
# An input of the loop as an array, or None where it is missing.
Read = Callable[[str], NDArray[Any] | None]


def read_all(read: Read, *names: str) -> list[Floats]:
    """Copies of several inputs.

    Raises:
        InvalidRequest: one is missing.
    """
    return [read_one(read, name) for name in names]


def read_one(read: Read, name: str, legal: tuple[int, ...] | None = None) -> Floats:
    """A copy of one input, of the shape `legal` where that is given.

    Raises:
        InvalidRequest: it is missing, or has another shape.
    """
    array = read(name)
    if array is None:
        raise invalid(name, "nothing", "all that the ensemble passes on")
    if legal is not None and array.shape != legal:
        raise invalid(name, f"shape {array.shape}", f"{legal}")
    return np.array(array)


def checked(
    conditioning: Conditioning,
    stage: Mapping[str, Any],
    rows: int,
    sizes: Mapping[str, int],
    later: Collection[str] = (),
) -> Conditioning:
    """The conditioning, if it has the inputs of `stage` (its part of the manifest) for so many rows.

    `sizes` gives the named dimensions; `later` are inputs that are made when the request begins.

    Raises:
        InvalidRequest: an array has another shape than the model takes.
    """
    for name, spec in stage["inputs"].items():
        if name in ("sample", *TIMESTEPS, *later):
            continue
        shape = conditioning.arrays[name].shape
        legal = (rows, *(sizes.get(dim, dim) for dim in spec["shape"][1:]))
        if shape != legal:
            raise invalid(name, f"shape {shape}", f"{legal}")
    return conditioning
