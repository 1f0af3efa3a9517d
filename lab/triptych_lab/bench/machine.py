"""Describe the machine that was measured: without it a figure means nothing."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from triptych_serving.tensorrt.library import package_version

PACKAGES = ("triptych", "onnxruntime", "numpy", "torch", "diffusers", "optimum-onnx")


def facts() -> dict[str, str]:
    """Return the processor, how many of them may be used, the system, and the versions of installed packages."""
    cpus = len(os.sched_getaffinity(0))
    return {"processor": f"{cpus} × {_processor()}", "system": platform.platform(), **versions()}


def versions() -> Mapping[str, str]:
    """Return the versions of those of `PACKAGES` that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = package_version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
