"""Stages on ONNX Runtime: encoders and decoders as they are, and the loop's `Denoiser`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from .denoiser import Conditioning, Floats, only
from .manifest import TIMESTEPS


def session(path: Path) -> ort.InferenceSession:
    """An ONNX Runtime session on all the CPUs this process may use.

    Threads do not spin between runs: the stages share these CPUs, and a spinning stage steals from a working one.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Stage:
    """One ONNX graph, arrays in and arrays out by name; `outputs` where not all of them are wanted."""

    def __init__(self, path: Path, outputs: Iterable[str] = ()) -> None:
        self._session = session(path)
        self.inputs = {tensor.name: tensor.shape for tensor in self._session.get_inputs()}
        self.outputs = list(outputs) or [tensor.name for tensor in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(self.outputs, self._session.run(self.outputs, dict(inputs)), strict=True))


class OrtDenoiser:
    """`Denoiser` over an exported graph. Bit-equal per row for every batch on the CPU provider (the export checks it)."""

    def __init__(self, graph: Path | Stage) -> None:
        self._stage = graph if isinstance(graph, Stage) else Stage(graph)
        (self._timestep,) = (name for name in self._stage.inputs if name in TIMESTEPS)
        self._one_timestep = not self._stage.inputs[self._timestep]
        self._conditions = [name for name in self._stage.inputs if name not in ("sample", self._timestep)]
        self._members: tuple[Conditioning, ...] = ()
        self._arrays: dict[str, Floats] = {}

    def predict(self, sample: Floats, timestep: Floats, conditioning: Sequence[Conditioning]) -> Floats:
        timestep = only(timestep) if self._one_timestep else timestep
        inputs = {"sample": sample, self._timestep: timestep, **self._stack(conditioning)}
        return self._stage(inputs)["out_sample"]

    def release(self, conditioning: Conditioning) -> None:
        if conditioning in self._members:
            self._members, self._arrays = (), {}

    def _stack(self, conditioning: Sequence[Conditioning]) -> dict[str, Floats]:
        """Rows of all requests as one array each; kept while the batch stays the same."""
        if self._members != tuple(conditioning):
            self._arrays = {
                name: np.concatenate([one.arrays[name] for one in conditioning]) for name in self._conditions
            }
            self._members = tuple(conditioning)
        return self._arrays
