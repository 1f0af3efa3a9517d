"""The TensorRT that builds, and the GPUs that are here to build for."""

from __future__ import annotations

import functools
import subprocess
from typing import Any

from triptych_serving.tensorrt import library

from ..errors import ExportError


def load(target: str) -> Any:
    """The module of a target.

    Raises:
        ExportError: it is not installed; says what to install.
    """
    try:
        return library.load(target)
    except library.LibraryMissing as error:
        raise ExportError(str(error)) from None


@functools.cache
def capabilities_here() -> tuple[str, ...]:
    """The compute capabilities of this machine's GPUs, like "sm89"; none without one."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(sorted({f"sm{line.strip().replace('.', '')}" for line in said.splitlines() if line.strip()}))
