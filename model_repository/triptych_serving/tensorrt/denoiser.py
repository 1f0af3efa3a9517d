"""The loop's `Denoiser` on TensorRT: padded batches, a captured graph for each batch size, conditioning kept on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..denoiser import Conditioning, Floats, calls, only, padded
from ..engines import Profile
from ..manifest import TIMESTEPS
from .device import Device, Shape, TensorRTEngine
from .lost import ends_the_process_if_lost
from .resident import Resident
from .runner import Runner

# A batch at the model's own size is padded to the next of these numbers of rows, each of which has a graph.
CAPTURED_ROWS = (1, 2, 3, 4, 6, 8, 12, 16)
REQUEST_ROWS = 2  # of a guided request, the most that one has


class TensorRTDenoiser:
    """`Denoiser` over a TensorRT engine.

    The bytes of a row may depend on how many rows it is run with, since TensorRT has different kernels for different shapes.
    With `fixed_rows` every call has that many rows, padded if there are fewer. The rows of one request are never split over
    two calls.

    Args:
        inputs: the stage's inputs as the manifest has them.
        sizes: the named dimensions at the model's own size. Graphs are captured at that size, before any request.
        most_rows: the most rows that the loop puts into a batch.

    Raises:
        ValueError: no profile of the engine holds the two rows of a guided request.
        DeviceError: the device refuses something, or there is too little memory.
    """

    def __init__(
        self,
        device: Device,
        engine: TensorRTEngine,
        profiles: Sequence[Profile],
        inputs: Mapping[str, Mapping[str, Any]],
        sizes: Mapping[str, int],
        *,
        most_rows: int,
        fixed_rows: int | None = None,
    ) -> None:
        self._device, self._fixed = device, fixed_rows
        self._own = {name: tuple(sizes.get(dim, dim) for dim in spec["shape"][1:]) for name, spec in inputs.items()}
        (self._timestep,) = (name for name in inputs if name in TIMESTEPS)
        self._one_timestep = not inputs[self._timestep]["shape"]
        self._conditions = [name for name in inputs if name not in ("sample", self._timestep)]
        self._most_rows = fixed_rows or most_rows
        self._rows = [n for n in self._legal_rows(most_rows) if _any_holds(profiles, self._shapes(self._own, n))]
        if not self._rows or max(self._rows) < REQUEST_ROWS:
            names = ", ".join(profile.name for profile in profiles)
            raise ValueError(
                f"rows: {self._most_rows} given; legal: {REQUEST_ROWS} or more, in one of profiles {names}"
            )
        captured = [self._shapes(self._own, n) for n in self._rows]
        # With fixed rows bytes must not change: kernels that are compiled in the background would change them midway.
        kernels = "none" if fixed_rows else "lazy"
        self._runner = Runner(device, engine, profiles, captured, kernels=kernels)
        self._resident = Resident(device, self._conditions)
        self._gathered: tuple[Conditioning, ...] = ()
        self._gathered_rows = 0

    def predict(self, sample: Floats, timestep: Floats, conditioning: Sequence[Conditioning]) -> Floats:
        shapes = {name: conditioning[0][name].shape[1:] for name in self._conditions}
        shapes |= {"sample": sample.shape[1:], self._timestep: ()}
        noise_pred = np.empty_like(sample)
        with ends_the_process_if_lost():
            for rows, members in calls(conditioning, self._most(shapes)):
                noise_pred[rows] = self._call(sample[rows], timestep[rows], members, shapes)
        return noise_pred

    def release(self, conditioning: Conditioning) -> None:
        with ends_the_process_if_lost():
            self._resident.release(conditioning)
        if conditioning in self._gathered:
            self._gathered = ()

    def _shapes(self, tails: Mapping[str, Shape], rows: int) -> dict[str, Shape]:
        """Return the inputs' shapes with `rows` rows; `tails` are their shapes without the first dimension."""
        shapes = {name: (rows, *tail) for name, tail in tails.items()}
        return {**shapes, self._timestep: ()} if self._one_timestep else shapes

    def _legal_rows(self, most_rows: int) -> Sequence[int]:
        return (self._fixed,) if self._fixed else [n for n in CAPTURED_ROWS if n < most_rows] + [most_rows]

    def _most(self, tails: Mapping[str, Shape]) -> int:
        """Return the most rows of this size that a call may have.

        Raises:
            ValueError: no profile holds even one.
        """
        if self._fixed:
            return self._fixed
        fitting = [n for n in range(1, self._most_rows + 1) if self._runner.holds(self._shapes(tails, n))]
        if not fitting:
            raise ValueError(f"no profile of the engine holds shapes {dict(tails)}")
        return fitting[-1]

    def _call(
        self, sample: Floats, timestep: Floats, members: tuple[Conditioning, ...], tails: Mapping[str, Shape]
    ) -> Floats:
        rows = self._padded(len(sample), tails)
        self._runner.put("sample", padded(sample, rows))
        self._runner.put(self._timestep, only(timestep) if self._one_timestep else padded(timestep, rows))
        self._gather(members, rows)
        self._runner.run(self._shapes(tails, rows))
        return self._runner.fetch({"out_sample": sample.shape})["out_sample"]

    def _padded(self, rows: int, tails: Mapping[str, Shape]) -> int:
        """Return how many rows a call of `rows` rows is padded to."""
        if self._fixed:
            return self._fixed
        return next((n for n in self._rows if n >= rows), rows) if tails == self._own else rows

    def _gather(self, members: tuple[Conditioning, ...], rows: int) -> None:
        """Copy the conditioning of all rows into the engine's inputs, unless it is there from the last step.

        A padded batch repeats that of its last row.
        """
        if (members, rows) == (self._gathered, self._gathered_rows):
            return
        self._gathered = ()  # a failure below would leave the inputs half written
        slots = [(one, k) for one in members for k in range(len(one))]
        slots += slots[-1:] * (rows - len(slots))
        for slot, (one, k) in enumerate(slots):
            for name, memory in self._resident[one].items():
                size = memory.nbytes // len(one)
                self._device.copy(memory.part(k * size, size), self._runner.memory[name].part(slot * size, size))
        self._gathered, self._gathered_rows = members, rows


def _any_holds(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> bool:
    return any(profile.holds(shapes) for profile in profiles)
