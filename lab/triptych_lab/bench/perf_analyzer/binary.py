"""Find perf_analyzer, and see that it runs here."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ..errors import BenchError

VARIABLE = "PERF_ANALYZER"
GET = (
    "`pip install perf-analyzer` on a system with glibc 2.38 or newer, or NVIDIA's SDK image "
    "(nvcr.io/nvidia/tritonserver:<release>-py3-sdk), which has it on PATH"
)
# What the loader says of a binary that needs newer libraries.
_TOO_OLD = re.compile(r"version `((?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found")


def find(environment: Mapping[str, str] | None = None) -> Path:
    """Find the perf_analyzer that `PERF_ANALYZER` names, or else the one on PATH.

    Raises:
        BenchError: there is none, or it does not run on this machine.
    """
    known = os.environ if environment is None else environment
    named = known.get(VARIABLE)
    found = shutil.which(named or "perf_analyzer", path=known.get("PATH"))
    if not found:
        given = f"{VARIABLE}={named}, no program" if named else f"none in {VARIABLE} or on PATH"
        raise BenchError(f"perf_analyzer: {given}; get it by {GET}")
    _check(Path(found))
    return Path(found)


def _check(binary: Path) -> None:
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"perf_analyzer: {binary} does not run ({error}); get it by {GET}") from None
    if missing := too_old(done.stderr):
        raise BenchError(f"perf_analyzer: {binary} needs {missing}, and here is {_libc()}; get it by {GET}")


def too_old(words: str) -> str:
    """Return the library version that the loader says is missing; "" if it says nothing like that."""
    missing = _TOO_OLD.search(words)
    return missing[1] if missing else ""


def _libc() -> str:
    return " ".join(platform.libc_ver()).strip() or "another C library"
