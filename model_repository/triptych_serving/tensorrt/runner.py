"""Run one engine: upload host arrays, run in the narrowest profile that holds their shapes, download the outputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines import Profile, narrowest
from .device import Context, Device, Graph, Shape, TensorRTEngine
from .staging import Staging

Shapes = Mapping[str, Shape]  # of the inputs, by name


class Runner:
    """Run an engine at any shapes that its `profiles` hold; those in `captured` run as a CUDA graph each.

    The device's memory is allocated in the constructor, for each tensor at its largest; so are a context for each profile, and
    one for each graph, since a captured context must not change.

    Args:
        carried: outputs that are copied to inputs after every run, by their names.
        kernels: as in `TensorRTEngine.context`, for shapes that are not captured. Those that are get "eager" kernels.

    Raises:
        OutOfMemory: there is too little memory; names the tensor.
        DeviceError: the device or the engine refuses something.
    """

    def __init__(
        self,
        device: Device,
        engine: TensorRTEngine,
        profiles: Sequence[Profile],
        captured: Sequence[Shapes] = (),
        *,
        kernels: str = "none",
        carried: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._device, self._engine, self._profiles, self._carried = device, engine, profiles, carried
        self.staging = Staging(device)
        self.inputs = [name for name, tensor in engine.tensors.items() if tensor.is_input]
        self.outputs = [name for name, tensor in engine.tensors.items() if not tensor.is_input]
        self._contexts = [engine.context(k, kernels) for k in range(len(profiles))]
        largest = [self._largest(context, profile) for context, profile in zip(self._contexts, profiles, strict=True)]
        nbytes = {name: max(shapes[name] for shapes in largest) for name in engine.tensors}
        self.memory = {name: device.allocate(size, f"tensor {name}") for name, size in nbytes.items()}
        for context in self._contexts:
            self._give_memory(context)
        # By the shapes of the inputs: the graph, and the shapes of its outputs.
        self._graphs: dict[tuple[tuple[str, Shape], ...], tuple[Graph, Shapes]] = {}
        for shapes in captured:
            if graph := self._captured(shapes):
                self._graphs[_key(shapes)] = graph
        engine.keep_kernels()

    def put(self, name: str, array: NDArray[Any], slot: int = 0) -> None:
        """Upload an input of the next run, or the part of it that begins as many such arrays later as `slot` says."""
        host = self.staging.array(array.shape, self._engine.tensors[name].dtype)
        np.copyto(host, array, casting="same_kind")
        self._device.upload(host, self.memory[name].part(slot * host.nbytes, host.nbytes))

    def run(self, shapes: Shapes) -> Shapes:
        """Start a run on the inputs in `memory`, of these shapes; return the outputs' shapes.

        Raises:
            ValueError: no profile holds the shapes.
        """
        if captured := self._graphs.get(_key(shapes)):
            graph, outputs = captured
            graph.launch()
            return outputs
        context = self._contexts[narrowest(self._profiles, shapes)]
        outputs = self._set_shapes(context, shapes)
        self._enqueue(context, outputs)
        return outputs

    def fetch(self, shapes: Shapes) -> dict[str, NDArray[Any]]:
        """Wait for the run and return its outputs. `shapes` are theirs, or have fewer rows to get the first rows only."""
        host = {name: self.download(name, shape) for name, shape in shapes.items()}
        self._device.synchronize()
        fetched = {name: array.copy() for name, array in host.items()}
        self.staging.again()
        return fetched

    def download(self, name: str, shape: Shape, begin: int = 0) -> NDArray[Any]:
        """Start the download of a tensor, or of a part of it from a byte on, and return where it will be after it."""
        array = self.staging.array(shape, self._engine.tensors[name].dtype)
        self._device.download(self.memory[name].part(begin, array.nbytes), array)
        return array

    def holds(self, shapes: Shapes) -> bool:
        """Return whether a profile holds inputs of these shapes."""
        return any(profile.holds(shapes) for profile in self._profiles)

    def _largest(self, context: Context, profile: Profile) -> dict[str, int]:
        """Return the bytes of each tensor at the profile's largest shapes."""
        inputs = {name: profile.shapes[name][2] for name in self.inputs}
        shapes = {**inputs, **self._set_shapes(context, inputs)}
        return {name: max(1, self._nbytes(name, shape)) for name, shape in shapes.items()}

    def _set_shapes(self, context: Context, shapes: Shapes) -> Shapes:
        """Set the shapes of the inputs; return those of the outputs."""
        for name, shape in shapes.items():
            context.set_shape(name, shape)
        return {name: context.shape(name) for name in self.outputs}

    def _give_memory(self, context: Context) -> None:
        for name, memory in self.memory.items():
            context.set_memory(name, memory)

    def _captured(self, shapes: Shapes) -> tuple[Graph, Shapes] | None:
        """Capture a run at these shapes, after a first one, in which TensorRT sets itself up; None where it cannot."""
        context = self._engine.context(narrowest(self._profiles, shapes), "eager")
        self._give_memory(context)
        outputs = self._set_shapes(context, shapes)
        for name, shape in shapes.items():
            there = self.memory[name].part(0, self._nbytes(name, shape))
            self._device.upload(np.zeros(shape, self._engine.tensors[name].dtype), there)
        run = functools.partial(self._enqueue, context, outputs)
        run()
        self._device.synchronize()
        return (self._device.capture(run), outputs) if context.capturable() else None

    def _enqueue(self, context: Context, outputs: Shapes) -> None:
        context.enqueue()
        for output, name in self._carried.items():
            nbytes = self._nbytes(output, outputs[output])
            self._device.copy(self.memory[output].part(0, nbytes), self.memory[name].part(0, nbytes))

    def _nbytes(self, name: str, shape: Shape) -> int:
        return math.prod(shape) * self._engine.tensors[name].dtype.itemsize


def _key(shapes: Shapes) -> tuple[tuple[str, Shape], ...]:
    return tuple(sorted(shapes.items()))
