"""The interface to a GPU: memory, copies, engines and captured graphs, all on one stream.

Calls only enqueue work. The device does it in the order of the calls, and all of it is done when `synchronize` returns. So
memory may be freed as soon as its last use is enqueued; but a page-locked array that is copied from or to must be left alone
until `synchronize`, or the `wait` of a later `mark`, returns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Bytes = NDArray[np.uint8]


class DeviceError(Exception):
    """The GPU, its driver or TensorRT refused a call; later calls may succeed."""


class OutOfMemory(DeviceError):
    """There is too little GPU memory. The message says how much was asked for and how much is free."""

    def __init__(self, what: str, asked: int, free: int, total: int) -> None:
        super().__init__(
            f"GPU memory: {_size(asked)} asked for ({what}), {_size(free)} of {_size(total)} free; end other programs on this "
            "GPU, or export for smaller batches or sizes"
        )


class DeviceLost(Exception):
    """CUDA answers every later call of this process with an error: only a new process helps."""


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


@dataclass(frozen=True)
class Memory:
    """A piece of the device's memory."""

    address: int
    nbytes: int

    def part(self, offset: int, nbytes: int) -> Memory:
        """Return a part of it; both numbers are in bytes.

        Raises:
            ValueError: the part does not lie inside.
        """
        if offset < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"bytes {offset} to {offset + nbytes} of a piece of {self.nbytes}")
        return Memory(self.address + offset, nbytes)


@dataclass(frozen=True)
class Tensor:
    """The type of an engine's input or output."""

    dtype: np.dtype[Any]
    is_input: bool


class Graph(Protocol):
    """Captured work that starts with one call, on the addresses and shapes that it was captured with."""

    def launch(self) -> None:
        """Enqueue the work."""
        ...


class Mark(Protocol):
    """A place in the device's work."""

    def wait(self) -> None:
        """Wait until all that was enqueued before it is done. Only once."""
        ...


class Context(Protocol):
    """An execution context of an engine, for one profile. Once it is captured, its shapes and memory must not change."""

    def set_shape(self, name: str, shape: Shape) -> None:
        """Set the shape of an input."""
        ...

    def shape(self, name: str) -> Shape:
        """Return the shape of any tensor; all inputs must have theirs."""
        ...

    def set_memory(self, name: str, memory: Memory) -> None:
        """Set where an input is read or an output is written."""
        ...

    def enqueue(self) -> None:
        """Enqueue one run.

        Raises:
            OutOfMemory: the profile is not resident, and there is too little for its activations.
        """
        ...

    def capturable(self) -> bool:
        """Whether a run at these shapes can be captured."""
        ...


class TensorRTEngine(Protocol):
    """A TensorRT engine on the device. Its contexts share one memory for activations, so that only one may run at a time.

    That memory is held for the engine's `resident` profiles; a context of any other takes its own for a run.
    """

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Its inputs and outputs, by name."""
        ...

    def context(self, profile: int, kernels: str) -> Context:
        """Make a context for the profile of this index.

        `kernels` says when TensorRT-RTX compiles kernels for exact shapes: at once ("eager"), in the background ("lazy") or
        never ("none").
        """
        ...

    def keep_kernels(self) -> None:
        """Keep the kernels that were compiled by now for the next start."""
        ...


class Device(Protocol):
    """A GPU with one stream, to be used by one thread at a time. Every method may raise DeviceError or DeviceLost."""

    def load(self, plan: Path, resident: Collection[int]) -> TensorRTEngine:
        """Load an engine from its file; `resident` are the profiles whose activations' memory is held from now on."""
        ...

    def allocate(self, nbytes: int, what: str) -> Memory:
        """Allocate memory.

        Raises:
            OutOfMemory: there is too little; its message names `what`.
        """
        ...

    def free(self, memory: Memory) -> None:
        """Free memory, once all that is enqueued by now is done."""
        ...

    def page_locked(self, nbytes: int) -> Bytes:
        """Allocate page-locked host memory, (nbytes,) uint8, for copies that do not block; it lives as long as the device."""
        ...

    def upload(self, array: NDArray[Any], memory: Memory) -> None:
        """Copy a C-contiguous host array to the device. One that is not page-locked may be changed at once afterwards."""
        ...

    def copy(self, source: Memory, target: Memory) -> None:
        """Copy all of `source` to the beginning of `target`."""
        ...

    def download(self, memory: Memory, array: NDArray[Any]) -> None:
        """Copy from the device to a page-locked array."""
        ...

    def mark(self) -> Mark:
        """Mark the end of what is enqueued by now."""
        ...

    def synchronize(self) -> None:
        """Wait until all that is enqueued is done."""
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """Capture what `work` enqueues as a graph, without running it. `work` must not allocate, free or wait."""
        ...
