"""What we ask of a GPU: memory, copies, engines and captured graphs, all on one stream.

Everything happens on the device in the order in which it was asked for, some time before `synchronize` returns. So memory may
be freed as soon as its last use has been asked for, and page-locked arrays that are copied from or to belong to the device
until then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]
Bytes = NDArray[np.uint8]


class DeviceError(Exception):
    """The GPU, its driver or TensorRT refuse something; later calls may succeed."""


class OutOfMemory(DeviceError):
    """Says how much was asked for, and how much there was; in bytes."""

    def __init__(self, what: str, asked: int, free: int, total: int) -> None:
        super().__init__(
            f"GPU memory: {_size(asked)} asked for ({what}), {_size(free)} of {_size(total)} free; end other programs on this "
            "GPU, or export for smaller batches or sizes"
        )


class DeviceLost(Exception):
    """An error after which CUDA answers every call of this process with an error: only a new process helps."""


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"


@dataclass(frozen=True)
class Memory:
    """A piece of the device's memory."""

    address: int
    nbytes: int

    def part(self, offset: int, nbytes: int) -> Memory:
        if offset < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"bytes {offset} to {offset + nbytes} of a piece of {self.nbytes}")
        return Memory(self.address + offset, nbytes)


@dataclass(frozen=True)
class Tensor:
    """An engine's input or output; `dtype` is NumPy's."""

    dtype: np.dtype[Any]
    is_input: bool


class Graph(Protocol):
    """Work that was captured once and starts at one call, on the addresses and shapes that it was captured with."""

    def launch(self) -> None: ...


class Context(Protocol):
    """One execution of an engine, in one profile. Once it has been captured it must not be bound anew."""

    def set_shape(self, name: str, shape: Shape) -> None:
        """Of an input."""
        ...

    def shape(self, name: str) -> Shape:
        """Of any tensor, once all inputs have theirs."""
        ...

    def set_memory(self, name: str, memory: Memory) -> None:
        """Where an input is read, or an output written."""
        ...

    def enqueue(self) -> None: ...


class TensorRTEngine(Protocol):
    """One plan on the device. Its contexts share the memory for what is between inputs and outputs: one runs at a time."""

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...

    def context(self, profile: int, kernels: str) -> Context:
        """`kernels` says when TensorRT-RTX compiles kernels for the very shapes: "eager", "lazy" or "none"."""
        ...


class Device(Protocol):
    """A GPU with one stream. For one thread at a time."""

    def load(self, plan: Path) -> TensorRTEngine: ...

    def allocate(self, nbytes: int, what: str) -> Memory:
        """Raises OutOfMemory; `what` is for its message."""
        ...

    def free(self, memory: Memory) -> None: ...

    def page_locked(self, nbytes: int) -> Bytes:
        """Host memory that copies from and to without waiting; lives as long as the device."""
        ...

    def upload(self, array: NDArray[Any], memory: Memory) -> None:
        """C-contiguous host array → device. An array that is not page-locked is free to change at once."""
        ...

    def copy(self, source: Memory, target: Memory) -> None: ...

    def download(self, memory: Memory, array: NDArray[Any]) -> None:
        """Device → page-locked array."""
        ...

    def synchronize(self) -> None:
        """Wait until all that was asked for is done."""
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """What `work` enqueues, as a graph; it is not run. It must neither allocate, free nor wait."""
        ...
