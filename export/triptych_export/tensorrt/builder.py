"""One ONNX file to one engine, in a process of its own: a crash inside TensorRT becomes an error, its memory is given back."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from triptych_serving.engines import Profile
from triptych_serving.tensorrt.library import logger, on_one_line

from ..errors import ExportError
from . import library

_NO_GPU = "tensorrt: finds no usable GPU; engines of this target are built on the GPU that serves them (see `triptych doctor`)"

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class EngineSpec:
    """What to build. `capability` is like "sm89"; `timing_cache` is read and written where TensorRT keeps one."""

    stage: str
    target: str
    capability: str
    onnx: Path
    plan: Path
    profiles: tuple[Profile, ...]
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Built:
    """How long a build took, in seconds, and the most memory that its process held; what the engine will hold on the GPU.

    `activation_bytes` are by profile. All sizes are in bytes.
    """

    seconds: float
    peak_bytes: int
    weights_bytes: int
    activation_bytes: Sequence[int]


def build(spec: EngineSpec, report: Report) -> Built:
    """Build `spec.plan`. `report` is called with the phase that TensorRT is in and the share of it that is over.

    Raises:
        ExportError: TensorRT refuses the graph or ends without an engine; names the stage and TensorRT's first reason.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, spec), daemon=True)
    process.start()
    theirs.close()
    try:
        return _follow(ours, spec, report)
    except EOFError:
        process.join()
        raise ExportError(f"{spec.stage}: TensorRT ended without an engine (exit code {process.exitcode})") from None
    finally:
        process.kill()
        process.join()


def _follow(messages: Connection, spec: EngineSpec, report: Report) -> Built:
    while True:
        kind, *values = messages.recv()
        if kind == "progress":
            report(*values)
        elif kind == "failed":
            raise ExportError(f"{spec.stage}: {values[0]}")
        else:
            return Built(*values)


def _child(messages: Connection, spec: EngineSpec) -> None:
    try:
        begun = time.monotonic()
        plan, memory = _serialized(spec, lambda phase, share: messages.send(("progress", phase, share)))
        spec.plan.write_bytes(plan)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        weights = max(memory["Weights"], default=len(memoryview(plan)))
        messages.send(("done", time.monotonic() - begun, peak, weights, memory["Activation"]))
    except ExportError as error:
        messages.send(("failed", str(error)))


def _serialized(spec: EngineSpec, report: Report) -> tuple[Any, Mapping[str, Sequence[int]]]:
    trt = library.load(spec.target)
    log = logger(trt)
    try:
        builder = trt.Builder(log)
    except TypeError:  # what its constructor raises where there is no driver
        raise ExportError(_NO_GPU if spec.target == "tensorrt" else log.take()) from None
    network = _parsed(trt, builder, log, spec.onnx)
    config = builder.create_builder_config()
    config.progress_monitor = _monitor(trt, report)
    _aim(trt, config, spec.capability)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT-RTX: else its engines allocate while they run
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    for profile in spec.profiles:
        config.add_optimization_profile(_trt_profile(builder, network, profile))
    cache = _timing_cache(config, spec.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ExportError(log.take())
    if cache is not None and spec.timing_cache is not None:
        spec.timing_cache.write_bytes(cache.serialize())
    return plan, log.memory


def _parsed(trt: Any, builder: Any, log: Any, onnx: Path) -> Any:
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # newer versions know no other kind
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        raise ExportError(on_one_line(parser.get_error(0).desc()) if parser.num_errors else log.take())
    return network


def _aim(trt: Any, config: Any, capability: str) -> None:
    """Name the GPU that the engine is for. Unnamed it is the first that is here; TensorRT proper builds for no other."""
    if capability in library.capabilities_here()[:1]:
        return
    known = [name.lower() for name in dir(getattr(trt, "ComputeCapability", None)) if name.startswith("SM")]
    if capability not in known:
        legal = ", ".join([*library.capabilities_here(), *known]) or "none without a GPU"
        raise ExportError(f"compute capability {capability!r} given; legal: {legal}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability.upper()), 0)


def _trt_profile(builder: Any, network: Any, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        made.set_shape(name, *profile.shapes[name])
    return made


def _timing_cache(config: Any, path: Path | None) -> Any:
    """Earlier measurements of kernels, where this TensorRT measures any."""
    if path is None or not hasattr(config, "create_timing_cache"):
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    return cache if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False) else None


def _monitor(trt: Any, report: Report) -> Any:
    """Tells how far each of TensorRT's outermost phases is."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.phases[phase] = max(1, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self.phases:
                report(phase, min(1.0, (step + 1) / self.phases[phase]))
            return True

        def phase_finish(self, phase: str) -> None:
            self.phases.pop(phase, None)

    return Monitor()
