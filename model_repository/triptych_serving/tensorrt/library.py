"""Load what runs models on GPUs: TensorRT or TensorRT-RTX, which have the same Python interface, or ONNX Runtime with CUDA."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import io
import re
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

TARGETS = ("tensorrt", "tensorrt-rtx")
CUDA_TARGET = "cuda"  # ONNX Runtime's CUDA provider
GPU_TARGETS = (*TARGETS, CUDA_TARGET)
# onnxruntime and onnxruntime-gpu write the same files: the one that was installed last is there.
CUDA_PROVIDER = "CUDAExecutionProvider"
GPU_WHEEL_HINT = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'triptych[cuda]'"
# TensorRT-RTX on PyPI: its Python bindings in one wheel, the libraries that they need in another, made for ONNX Runtime.
RTX_BINDINGS, RTX_LIBRARIES = "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"
# In loading order: each needs those before it.
RTX_FILES = ("libcudart.so.*", "libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*")
CUDA, CUDA_DRIVER, CUDA_HINT = "cuda.bindings.runtime", "cuda.bindings.driver", "pip install 'cuda-bindings>=13'"
# What a builder says of each profile, in their order.
MEMORY = re.compile(r"Total (Activation|Weights) Memory: (\d+) bytes")
MOST_TEXT = 400  # characters of an error


class LibraryMissing(Exception):
    """TensorRT, or something that it needs, is missing: `missing` says what, `mend` what to do about it."""

    def __init__(self, missing: str, mend: str) -> None:
        super().__init__(f"{missing}; {mend}" if mend else missing)
        self.missing, self.mend = missing, mend


def package_version(package: str) -> str:
    """Return the version of a package; ONNX Runtime comes as either of two, with the same modules.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        if package != "onnxruntime":
            raise
        return version("onnxruntime-gpu")


@functools.cache
def load(target: str) -> Any:
    """Import the module of a target: `onnxruntime`, `tensorrt`, `tensorrt_rtx`, or `tensorrt_rtx_bindings` with its libraries.

    Raises:
        LibraryMissing: it is not installed; says what to install.
    """
    if target == CUDA_TARGET:
        return _onnxruntime()
    if target == "tensorrt":
        return imported("tensorrt", "pip install tensorrt (its libraries come from NVIDIA's index)")
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        return imported("tensorrt_rtx", "")
    hint = "pip install 'triptych[tensorrt-rtx]'"
    _preload_libraries(hint)
    return imported(RTX_BINDINGS, hint)


def imported(module: str, hint: str) -> Any:
    """Import a module.

    Raises:
        LibraryMissing: it cannot be imported; `hint` says what to do about it.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise LibraryMissing(f"{module}: cannot be imported ({error})", hint) from None


def _onnxruntime() -> Any:
    """ONNX Runtime with its CUDA provider; CUDA's libraries are loaded, from their wheels where those are installed."""
    ort = imported("onnxruntime", GPU_WHEEL_HINT)
    if CUDA_PROVIDER not in ort.get_available_providers():
        raise LibraryMissing(f"onnxruntime {ort.__version__}: has no {CUDA_PROVIDER}", GPU_WHEEL_HINT)
    _preload_cuda(ort)
    return ort


def _preload_cuda(ort: Any) -> list[str]:
    """What could not be loaded, a line each, which matters only where the provider cannot be either."""
    said = io.StringIO()
    with redirect_stdout(said):
        ort.preload_dlls()
    return [line for line in said.getvalue().splitlines() if line.startswith("Failed")]


def check_provider(ort: Any) -> None:
    """Make ONNX Runtime load its CUDA provider.

    Raises:
        LibraryMissing: it cannot; says why.
    """
    import numpy as np  # `serve` reads this module first, and does without

    try:
        ort.OrtValue.ortvalue_from_shape_and_type([1], np.float32, "cuda", 0)
    except RuntimeError as error:
        reason = next(iter(_preload_cuda(ort)), str(error))
        raise LibraryMissing(f"onnxruntime's {CUDA_PROVIDER}: {on_one_line(reason)}", GPU_WHEEL_HINT) from None


def _preload_libraries(hint: str) -> None:
    """Load the libraries that the bindings need: the loader then finds them by name, whatever folder they are in."""
    spec = importlib.util.find_spec(RTX_LIBRARIES)
    if spec is None or not spec.submodule_search_locations:
        raise LibraryMissing(f"{RTX_LIBRARIES}: not installed", hint)
    folder = Path(spec.submodule_search_locations[0])
    for pattern in RTX_FILES:
        file = next(iter(sorted(folder.glob(pattern))), None)
        if file is None:
            raise LibraryMissing(f"{folder / pattern}: missing", hint)
        ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)


def logger(trt: Any) -> Any:
    """Make a TensorRT logger that keeps errors, of which the first is the cause, and the figures of MEMORY as they are told."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.memory: dict[str, list[int]] = {"Activation": [], "Weights": []}

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif found := MEMORY.match(message):
                self.memory[found[1]].append(int(found[2]))

        def take(self) -> str:
            """Return the first error since the last call, and forget all."""
            errors, self.errors = self.errors, []
            return on_one_line(errors[0]) if errors else "TensorRT gives no reason"

    return Log()


def on_one_line(error: str) -> str:
    """Join the lines of a TensorRT error: the first only names a place in its source, the next say what is wrong."""
    return " ".join(error.split())[:MOST_TEXT]
