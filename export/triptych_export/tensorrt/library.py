"""Loads TensorRT, or TensorRT-RTX, whichever wheel it comes in. The two share one Python interface."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import subprocess
from pathlib import Path
from typing import Any

from ..errors import ExportError

TARGETS = ("tensorrt", "tensorrt-rtx")
# TensorRT-RTX on PyPI: its Python bindings in one wheel, the libraries that they need in another, made for ONNX Runtime.
RTX_BINDINGS, RTX_LIBRARIES = "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"
# In the order in which they need each other.
RTX_FILES = ("libcudart.so.*", "libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*")


@functools.cache
def load(target: str) -> Any:
    """The module of a target: `tensorrt`, `tensorrt_rtx`, or `tensorrt_rtx_bindings` with libraries from beside it.

    Raises:
        ExportError: it is not installed; says what to install.
    """
    if target == "tensorrt":
        return _imported("tensorrt", "pip install tensorrt (its libraries come from NVIDIA's index)")
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        return _imported("tensorrt_rtx", "")
    hint = "pip install 'triptych[tensorrt-rtx]'"
    _preload_libraries(hint)
    return _imported(RTX_BINDINGS, hint)


def _imported(module: str, hint: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise ExportError(f"{module}: cannot be imported ({error}); {hint}") from None


def _preload_libraries(hint: str) -> None:
    """The bindings ask the loader for libraries by name; those that are loaded already satisfy it from any folder."""
    spec = importlib.util.find_spec(RTX_LIBRARIES)
    if spec is None or not spec.submodule_search_locations:
        raise ExportError(f"{RTX_LIBRARIES}: not installed; {hint}")
    folder = Path(spec.submodule_search_locations[0])
    for pattern in RTX_FILES:
        file = next(iter(sorted(folder.glob(pattern))), None)
        if file is None:
            raise ExportError(f"{folder / pattern}: missing; {hint}")
        ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)


@functools.cache
def capabilities_here() -> tuple[str, ...]:
    """The compute capabilities of this machine's GPUs, like "sm89"; none without one."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(sorted({f"sm{line.strip().replace('.', '')}" for line in said.splitlines() if line.strip()}))
