"""Compiled kernels, kept between starts: TensorRT-RTX compiles them where it runs, which takes minutes for a large engine."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from pathlib import Path

SUFFIX = ".kernels"

log = logging.getLogger(__name__)


def read(plan: Path) -> bytes:
    """The kernels that were kept for an engine, nothing where there are none. TensorRT checks whether they suit this machine."""
    with contextlib.suppress(OSError):
        return _file(plan).read_bytes()
    return b""


def keep(plan: Path, content: bytes) -> None:
    """Keep an engine's kernels, whole or not at all. A folder that cannot be written to costs the next start some time."""
    file = _file(plan)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=SUFFIX, delete=False) as new:
            new.write(content)
        os.replace(new.name, file)
    except OSError as error:
        log.warning("%s: compiled kernels are not kept: %s", plan, error)


def _file(plan: Path) -> Path:
    """In the engine store, by the plan's place: kernels of another engine that was there are of no use, and do no harm."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(str(plan.resolve()).encode()).hexdigest()[:32]
    return caches / "triptych" / "engines" / f"{name}{SUFFIX}"
