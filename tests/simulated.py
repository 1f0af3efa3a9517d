"""A GPU as `triptych_serving.tensorrt.device.Device` describes it, in this process. It is stricter than a real one.

Work waits in a queue until `synchronize`: page-locked arrays are read and written then, so whoever changes or reads one too early
gets it wrong. Memory starts as NaN and addresses are never used twice. A plan is JSON that names an ONNX file, which ONNX
Runtime runs, its tensors and profiles. With `tactics` results depend a little on the number of rows, as they do on GPUs.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from triptych_serving import runtimes
from triptych_serving.engines import Machine, Profile
from triptych_serving.ort import CPU, types
from triptych_serving.tensorrt import machine
from triptych_serving.tensorrt.device import DeviceLost, Memory, OutOfMemory, Tensor

GAP = 1 << 20
ACTIVATIONS = 1 << 20  # of a run in a profile that is not resident
MACHINE = Machine("tensorrt-rtx", "1.7.1.116", "sm89", "Simulated GPU")


def plan(onnx: Path, facts, sizes) -> bytes:
    """A plan that `SimulatedDevice` loads; `facts` as the manifest has them of the stage, `sizes` the model's own."""
    kept = {name: facts[name] for name in ("inputs", "outputs", "profiles")}
    return json.dumps({"onnx": str(onnx.resolve()), **kept, "sizes": sizes}).encode()


def install(*, tactics: bool) -> None:
    """Put a simulated GPU in the place of this process's."""
    device = SimulatedDevice(tactics=tactics)
    runtimes.device, runtimes.machine = lambda _target: device, lambda _target: MACHINE
    machine.probe = lambda _target: MACHINE


def install_cuda() -> None:
    """Let the processor run what is for ONNX Runtime's CUDA provider."""
    runtimes.provider = lambda: CPU
    machine.probe = lambda target: replace(MACHINE, target=target)


class SimulatedDevice:
    def __init__(self, capacity: int = 1 << 40, *, tactics: bool = False, captures: bool = True) -> None:
        self.capacity, self.tactics, self.captures = capacity, tactics, captures
        self.done: Counter[str] = Counter()  # calls, and bytes that were copied
        self.lost = False
        self._memory: dict[int, np.ndarray] = {}
        self._locked: list[tuple[int, int]] = []
        self._next = GAP
        self._queue: deque = deque()
        self._capturing: list | None = None

    # What `Device` asks for.

    def load(self, path: Path, resident) -> SimulatedEngine:
        return SimulatedEngine(self, json.loads(path.read_bytes()), resident)

    def allocate(self, nbytes: int, what: str) -> Memory:
        self._not_capturing("allocate")
        assert nbytes > 0, "CUDA gives no memory of no bytes"
        if nbytes > self.free_bytes:
            raise OutOfMemory(what, nbytes, self.free_bytes, self.capacity)
        memory = Memory(self._next, nbytes)
        self._memory[memory.address] = np.full(nbytes, 0xFF, np.uint8)
        self._next += nbytes + GAP
        self.done["allocations"] += 1
        return memory

    def free(self, memory: Memory) -> None:
        self._not_capturing("free")
        assert memory.address in self._memory, "freed twice, or only a part"
        array = self._memory.pop(memory.address)
        self.enqueue(lambda: array.fill(0xFF))
        self.done["frees"] += 1

    def page_locked(self, nbytes: int) -> np.ndarray:
        array = np.full(nbytes, 0xFF, np.uint8)
        self._locked.append((array.ctypes.data, nbytes))
        return array

    def upload(self, array: np.ndarray, memory: Memory) -> None:
        assert array.flags.c_contiguous
        assert array.nbytes == memory.nbytes
        source = array if self._is_locked(array) else array.copy()
        target = self.view(memory)
        self._count("uploads", array.nbytes)
        self.enqueue(lambda: np.copyto(target, source.reshape(-1).view(np.uint8)))

    def copy(self, source: Memory, target: Memory) -> None:
        assert source.nbytes == target.nbytes
        there, to = self.view(source), self.view(target)
        self._count("copies", source.nbytes)
        self.enqueue(lambda: np.copyto(to, there))

    def download(self, memory: Memory, array: np.ndarray) -> None:
        assert self._is_locked(array), "a download into other memory waits for the device"
        there = self.view(memory)
        array.reshape(-1).view(np.uint8).fill(0xFF)  # until `synchronize`
        self._count("downloads", array.nbytes)
        self.enqueue(lambda: np.copyto(array.reshape(-1).view(np.uint8), there))

    def synchronize(self) -> None:
        self._not_capturing("synchronize")
        self.done["synchronizations"] += 1
        self.do_until(None)

    def mark(self) -> SimulatedMark:
        self._not_capturing("mark")
        mark = SimulatedMark(self)
        self.enqueue(mark)
        return mark

    def do_until(self, mark) -> None:
        """Do what is enqueued before a mark, or all."""
        if self.lost:
            raise DeviceLost("GPU: cudaErrorIllegalAddress: an illegal memory access was encountered")
        while self._queue and (mark is None or not mark.passed):
            self._queue.popleft()()

    def capture(self, work) -> SimulatedGraph:
        assert not self._queue, "capture when the stream is idle"
        self._capturing = captured = []
        try:
            work()
        finally:
            self._capturing = None
        assert captured, "an empty graph"
        self.done["captures"] += 1
        return SimulatedGraph(self, captured)

    # For the parts of the simulation and for tests.

    @property
    def free_bytes(self) -> int:
        return self.capacity - sum(array.nbytes for array in self._memory.values())

    @property
    def capturing(self) -> bool:
        return self._capturing is not None

    @property
    def pieces(self) -> int:
        """Of memory that is allocated."""
        return len(self._memory)

    @property
    def locked_bytes(self) -> int:
        """Of page-locked memory, which is never given back."""
        return sum(nbytes for _, nbytes in self._locked)

    def view(self, memory: Memory) -> np.ndarray:
        """The bytes of a piece; asked for when work is, so that use after free is found there."""
        for address, array in self._memory.items():
            if address <= memory.address and memory.address + memory.nbytes <= address + array.nbytes:
                return array[memory.address - address :][: memory.nbytes]
        raise AssertionError(f"{memory} is not allocated, or no longer")

    def enqueue(self, work) -> None:
        (self._queue if self._capturing is None else self._capturing).append(work)

    def _is_locked(self, array: np.ndarray) -> bool:
        begin = array.ctypes.data
        return any(at <= begin and begin + array.nbytes <= at + nbytes for at, nbytes in self._locked)

    def _not_capturing(self, what: str) -> None:
        assert self._capturing is None, f"{what} while a graph is captured"

    def _count(self, what: str, nbytes: int) -> None:
        self.done[what] += 1
        self.done[f"bytes of {what}"] += nbytes


class SimulatedMark:
    def __init__(self, device: SimulatedDevice) -> None:
        self._device, self.passed = device, False

    def __call__(self) -> None:
        self.passed = True

    def wait(self) -> None:
        self._device.done["waits"] += 1
        self._device.do_until(self)


class SimulatedGraph:
    def __init__(self, device: SimulatedDevice, work: list) -> None:
        self._device, self._work = device, work

    def launch(self) -> None:
        self._device.done["launches"] += 1
        for work in self._work:
            self._device.enqueue(work)


class SimulatedEngine:
    def __init__(self, device: SimulatedDevice, document, resident) -> None:
        self.device, self.resident = device, resident
        self.profiles = [Profile.from_json(profile) for profile in document["profiles"]]
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = ort.InferenceSession(document["onnx"], options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs, self._sizes = document["inputs"], document["outputs"], document["sizes"]
        known = types(self.session)  # of all that have no default
        read = {name: Tensor(known.get(name, np.dtype(spec["dtype"])), True) for name, spec in self.inputs.items()}
        made = {name: Tensor(np.dtype(spec["dtype"]), False) for name, spec in self.outputs.items()}
        self.tensors = {**read, **made}

    def keep_kernels(self) -> None:
        self.device.done["kernels kept"] += 1

    def output_shape(self, name: str, inputs) -> tuple[int, ...]:
        """A dimension that no input has is as many times one for the same side as at the model's own size."""
        known = {
            dim: size
            for tensor, shape in inputs.items()
            for dim, size in zip(self.inputs[tensor]["shape"], shape, strict=True)
            if isinstance(dim, str)
        }
        return tuple(self._size(dim, known) if isinstance(dim, str) else dim for dim in self.outputs[name]["shape"])

    def _size(self, dim: str, known) -> int:
        if dim in known:
            return known[dim]
        near = next(other for other in known if other.split("_")[-1] == dim.split("_")[-1])
        return known[near] * self._sizes[dim] // self._sizes[near]

    def context(self, profile: int, kernels: str) -> SimulatedContext:
        assert kernels in ("eager", "lazy", "none")
        self.device.done[f"contexts, kernels {kernels}"] += 1
        return SimulatedContext(self, self.profiles[profile], resident=profile in self.resident)


class SimulatedContext:
    def __init__(self, engine: SimulatedEngine, profile: Profile, *, resident: bool) -> None:
        self._engine, self._device, self._profile, self._resident = engine, engine.device, profile, resident
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._memory: dict[str, Memory] = {}
        self._ran: dict[str, tuple[int, ...]] | None = None  # the shapes of the last run
        self._captured = False

    def set_shape(self, name, shape) -> None:
        assert not self._captured, "a captured context must not change"
        assert self._engine.tensors[name].is_input
        assert self._profile.holds({name: shape}), f"{name} {shape} is not in profile {self._profile.name}"
        self._shapes[name] = tuple(shape)

    def shape(self, name):
        if name in self._shapes:
            return self._shapes[name]
        self._all_shapes()
        return self._engine.output_shape(name, self._shapes)

    def set_memory(self, name, memory) -> None:
        assert not self._captured, "a captured context must not change"
        assert name in self._engine.tensors
        self._memory[name] = memory

    def enqueue(self) -> None:
        self._all_shapes()
        device = self._device
        views = {name: self._array(name) for name in self._engine.tensors}
        if device.capturing:
            assert self._ran == self._shapes, "a context is captured after a run with the same shapes"
            self._captured = True
        self._ran = dict(self._shapes)
        device.done["enqueues"] += 1
        lent = None if self._resident else device.allocate(ACTIVATIONS, "activations at this size")
        device.enqueue(lambda: self._execute(views))
        if lent:
            device.free(lent)

    def capturable(self) -> bool:
        return self._device.captures

    def _execute(self, views) -> None:
        engine = self._engine
        inputs = {name: array for name, array in views.items() if engine.tensors[name].is_input}
        for name, array in inputs.items():
            assert array.dtype.kind != "f" or np.isfinite(array).all(), f"{name} holds what nobody wrote"
        for name, made in zip(engine.outputs, engine.session.run(list(engine.outputs), inputs), strict=True):
            rows = np.float32(1 + 1e-6 * len(made)) if engine.device.tactics and made.dtype == np.float32 else 1
            np.copyto(views[name], made * rows, casting="same_kind")

    def _array(self, name):
        shape, dtype = self.shape(name), self._engine.tensors[name].dtype
        memory = self._memory[name]
        nbytes = int(np.prod(shape)) * dtype.itemsize
        return self._device.view(memory.part(0, nbytes)).view(dtype).reshape(shape)

    def _all_shapes(self) -> None:
        inputs = {name for name, tensor in self._engine.tensors.items() if tensor.is_input}
        assert inputs == self._shapes.keys(), f"shapes missing: {inputs - self._shapes.keys()}"
