"""Encoders and decoders on a TensorRT engine: arrays in and arrays out, by name, as `OrtStage`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines import Profile
from .device import Device, TensorRTEngine
from .lost import ends_the_process_if_lost
from .runner import Runner


class TensorRTStage:
    """One engine that runs Triton's batches as they come, without padding and without captured graphs."""

    def __init__(
        self, device: Device, engine: TensorRTEngine, profiles: Sequence[Profile], *, kernels: str = "none"
    ) -> None:
        self._runner = Runner(device, engine, profiles, kernels=kernels)
        self._most = max(largest[0] for profile in profiles for _, _, largest in profile.shapes.values())
        self.inputs, self.outputs = self._runner.inputs, self._runner.outputs

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the whole batch at once, or in as few parts as the profiles allow.

        Raises:
            ValueError: no profile holds the inputs' shapes.
        """
        rows = len(next(iter(inputs.values())))
        parts = [
            self._run({name: array[begin : begin + self._most] for name, array in inputs.items()})
            for begin in range(0, rows, self._most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with ends_the_process_if_lost():
            for name, array in inputs.items():
                self._runner.put(name, array)
            shapes = self._runner.run({name: array.shape for name, array in inputs.items()})
            return self._runner.fetch(shapes)
