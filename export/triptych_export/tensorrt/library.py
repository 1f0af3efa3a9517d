"""The TensorRT that builds, and the GPUs that are here to build for."""

from __future__ import annotations

import functools
from typing import Any

from triptych_serving.tensorrt import library, machine

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


capabilities_here = functools.cache(machine.capabilities)
