"""`Device` on a real GPU: CUDA through cuda-python, engines through TensorRT or TensorRT-RTX."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import kernels as kernels_kept
from .device import (
    Bytes,
    Context,
    DeviceError,
    DeviceLost,
    Graph,
    Mark,
    Memory,
    OutOfMemory,
    Shape,
    Tensor,
    TensorRTEngine,
)
from .library import CUDA, CUDA_DRIVER, CUDA_HINT, imported, load

GPU = 0  # CUDA_VISIBLE_DEVICES decides which one that is
KEPT_BYTES = 2**64 - 1  # all of it
# Errors after which, by CUDA's documentation, the process must end: its context is damaged for good.
STICKY = (
    "cudaErrorAssert",
    "cudaErrorContained",
    "cudaErrorContextIsDestroyed",
    "cudaErrorECCUncorrectable",
    "cudaErrorExternalDevice",
    "cudaErrorHardwareStackError",
    "cudaErrorIllegalAddress",
    "cudaErrorIllegalInstruction",
    "cudaErrorInvalidAddressSpace",
    "cudaErrorInvalidPc",
    "cudaErrorLaunchFailure",
    "cudaErrorLaunchTimeout",
    "cudaErrorMisalignedAddress",
    "cudaErrorMpsClientTerminated",
    "cudaErrorNvlinkUncorrectable",
    "cudaErrorTensorMemoryLeak",
    "cudaErrorUnknown",
)


class CudaDevice:
    """`Device` on the first GPU that CUDA shows. A process makes one and keeps it.

    Raises:
        LibraryMissing: TensorRT or cuda-python is not installed.
        DeviceError: there is no driver or no GPU.
    """

    def __init__(self, target: str) -> None:
        self.trt, self._cudart = load(target), imported(CUDA, CUDA_HINT)
        # Native: TensorRT's threads would wait for Python's lock, which who waits for them may hold.
        self._log = self.trt.Logger(self.trt.Logger.ERROR)
        self._done(self._cudart.cudaSetDevice(GPU))
        flags = self._cudart.cudaStreamNonBlocking  # else it would wait for the default stream, which libraries use
        self.stream = self._done(self._cudart.cudaStreamCreateWithFlags(flags))
        self.runtime = self.trt.Runtime(self._log)
        self._keep_freed_memory()

    def load(self, plan: Path, resident: Collection[int]) -> TensorRTEngine:
        return CudaEngine(self, plan, resident)

    def allocate(self, nbytes: int, what: str) -> Memory:
        return Memory(self._allocated(self._cudart.cudaMallocAsync(nbytes, self.stream), nbytes, what), nbytes)

    @contextmanager
    def lent(self, nbytes: int, what: str) -> Iterator[Memory]:
        """Yield memory that is not kept in the stream's pool afterwards, so that other processes have it; waits for the device.

        Raises:
            OutOfMemory: as `allocate`.
        """
        address = self._allocated(self._cudart.cudaMalloc(nbytes), nbytes, what)
        try:
            yield Memory(address, nbytes)
        finally:
            self.synchronize()
            self._done(self._cudart.cudaFree(address))

    def _allocated(self, result: tuple[Any, Any], nbytes: int, what: str) -> int:
        error, address = result
        if error == self._cudart.cudaError_t.cudaErrorMemoryAllocation:
            self._cudart.cudaGetLastError()  # clears the error, which TensorRT would take for its own
            free, total = self._done(self._cudart.cudaMemGetInfo())
            raise OutOfMemory(what, nbytes, free, total)
        self._done((error,))
        return int(address)

    def _keep_freed_memory(self) -> None:
        """Let the stream's pool keep what is freed: by default it goes back to the driver at every synchronization."""
        pool = self._done(self._cudart.cudaDeviceGetDefaultMemPool(GPU))
        threshold = self._cudart.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
        self._done(
            self._cudart.cudaMemPoolSetAttribute(
                pool, threshold, imported(CUDA_DRIVER, CUDA_HINT).cuuint64_t(KEPT_BYTES)
            )
        )

    def free(self, memory: Memory) -> None:
        self._done(self._cudart.cudaFreeAsync(memory.address, self.stream))

    def page_locked(self, nbytes: int) -> Bytes:
        address = self._done(self._cudart.cudaHostAlloc(nbytes, self._cudart.cudaHostAllocDefault))
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(int(address)))

    def upload(self, array: NDArray[Any], memory: Memory) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(memory.address, array.ctypes.data, array.nbytes, kind)

    def copy(self, source: Memory, target: Memory) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(target.address, source.address, source.nbytes, kind)

    def download(self, memory: Memory, array: NDArray[Any]) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(array.ctypes.data, memory.address, array.nbytes, kind)

    def mark(self) -> Mark:
        # Blocking: a wait that spins would hold a processor for the whole of a step.
        flags = self._cudart.cudaEventDisableTiming | self._cudart.cudaEventBlockingSync
        event = self._done(self._cudart.cudaEventCreateWithFlags(flags))
        self._done(self._cudart.cudaEventRecord(event, self.stream))
        return CudaMark(self, event)

    def wait(self, event: Any) -> None:
        try:
            self._done(self._cudart.cudaEventSynchronize(event))
        finally:
            self._cudart.cudaEventDestroy(event)

    def synchronize(self) -> None:
        self._done(self._cudart.cudaStreamSynchronize(self.stream))

    def capture(self, work: Callable[[], None]) -> Graph:
        # Thread-local: other threads may go on with calls that cannot be captured.
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._done(self._cudart.cudaStreamBeginCapture(self.stream, mode))
        try:
            work()
        except BaseException:
            self._cudart.cudaStreamEndCapture(self.stream)
            raise
        graph = self._done(self._cudart.cudaStreamEndCapture(self.stream))
        try:
            return CudaGraph(self, self._done(self._cudart.cudaGraphInstantiate(graph, 0)))
        finally:
            self._cudart.cudaGraphDestroy(graph)

    def launch(self, executable: Any) -> None:
        self._done(self._cudart.cudaGraphLaunch(executable, self.stream))

    def refusal(self, what: str) -> Exception:
        """Make the error for something that TensorRT refused, which has logged why: DeviceLost or DeviceError."""
        error = self._cudart.cudaGetLastError()[0]
        if error.name in STICKY:
            return DeviceLost(f"GPU: {what}: {self._words(error)}")
        free, total = self._done(self._cudart.cudaMemGetInfo())
        return DeviceError(f"{what}; the log says why ({free / 1e9:.2f} GB of {total / 1e9:.2f} GB of GPU memory free)")

    def _copy(self, target: int, source: int, nbytes: int, kind: Any) -> None:
        self._done(self._cudart.cudaMemcpyAsync(target, source, nbytes, kind, self.stream))

    def _done(self, result: tuple[Any, ...]) -> Any:
        """Return what a CUDA call returned after its error code: the value if it is one, else a list.

        Raises:
            DeviceLost: it failed, and so will all later calls.
            DeviceError: this call failed.
        """
        error, *values = result
        if error != self._cudart.cudaError_t.cudaSuccess:
            raise (DeviceLost if error.name in STICKY else DeviceError)(f"GPU: {self._words(error)}")
        return values[0] if len(values) == 1 else values

    def _words(self, error: Any) -> str:
        return f"{error.name}: {self._cudart.cudaGetErrorString(error)[1].decode()}"


class CudaMark:
    """`Mark` by an event."""

    def __init__(self, device: CudaDevice, event: Any) -> None:
        self._device, self._event = device, event

    def wait(self) -> None:
        self._device.wait(self._event)


class CudaGraph:
    """`Graph` that lives as long as the process."""

    def __init__(self, device: CudaDevice, executable: Any) -> None:
        self._device, self._executable = device, executable

    def launch(self) -> None:
        self._device.launch(self._executable)


class CudaEngine:
    """`TensorRTEngine` with one piece of memory for the activations of its resident profiles."""

    def __init__(self, device: CudaDevice, plan: Path, resident: Collection[int]) -> None:
        self.device, self.name, self._plan = device, f"{plan.parent.name}/{plan.name}", plan
        self._kernels: Any = None
        self._kept = b""
        with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            self._engine = device.runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise device.refusal(f"{self.name}: TensorRT does not load it")
        names = [self._engine.get_tensor_name(k) for k in range(self._engine.num_io_tensors)]
        self.tensors = {name: self._tensor(name) for name in names}
        self._resident = resident
        nbytes = max((self._engine.get_device_memory_size_for_profile_v2(k) for k in resident), default=0)
        self._activations = device.allocate(max(1, nbytes), f"activations of {self.name}")

    def _tensor(self, name: str) -> Tensor:
        trt = self.device.trt
        is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        return Tensor(np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))), is_input)

    def context(self, profile: int, kernels: str) -> Context:
        context = self._new_context(kernels)
        if context is None:
            raise self.device.refusal(f"{self.name}: no context for profile {profile}")
        if profile in self._resident:
            context.set_device_memory(self._activations.address, self._activations.nbytes)
        if not context.set_optimization_profile_async(profile, int(self.device.stream)):
            raise self.device.refusal(f"{self.name}: profile {profile} cannot be chosen")
        self.device.synchronize()
        return CudaContext(self, context, resident=profile in self._resident)

    def keep_kernels(self) -> None:
        if self._kernels is None:
            return
        content = bytes(memoryview(self._kernels.serialize()))
        if content != self._kept:
            kernels_kept.keep(self._plan, content)
            self._kept = content

    def _new_context(self, kernels: str) -> Any:
        trt, ours = self.device.trt, self.device.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):  # TensorRT proper compiles when it builds
            return self._engine.create_execution_context(ours)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(ours)
        strategy = getattr(trt.DynamicShapesKernelSpecializationStrategy, kernels.upper())
        config.dynamic_shapes_kernel_specialization_strategy = strategy
        if self._kernels is None:
            self._kernels, self._kept = config.create_runtime_cache(), kernels_kept.read(self._plan)
            if self._kept and not self._kernels.deserialize(self._kept):
                self._kept = b""  # of another driver, say
        config.set_runtime_cache(self._kernels)
        return self._engine.create_execution_context(config)


class CudaContext:
    """`Context` of one profile."""

    def __init__(self, engine: CudaEngine, context: Any, *, resident: bool) -> None:
        self._engine, self._context, self._resident = engine, context, resident

    def set_shape(self, name: str, shape: Shape) -> None:
        self._granted(self._context.set_input_shape(name, shape), f"{name} of shape {shape}")

    def shape(self, name: str) -> Shape:
        return tuple(self._context.get_tensor_shape(name))

    def set_memory(self, name: str, memory: Memory) -> None:
        self._granted(self._context.set_tensor_address(name, memory.address), f"memory for {name}")

    def enqueue(self) -> None:
        if self._resident:
            self._execute()
            return
        nbytes = max(1, self._context.update_device_memory_size_for_shapes())
        with self._engine.device.lent(nbytes, f"activations of {self._engine.name} at this size") as memory:
            self._context.set_device_memory(memory.address, memory.nbytes)
            self._execute()

    def capturable(self) -> bool:
        # TensorRT proper has no such question: its engines of static shapes can be captured.
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(int(self._engine.device.stream)))

    def _execute(self) -> None:
        stream = int(self._engine.device.stream)
        self._granted(self._context.execute_async_v3(stream), "TensorRT does not run it")

    def _granted(self, granted: bool, what: str) -> None:
        if not granted:
            raise self._engine.device.refusal(f"{self._engine.name}: {what}")
