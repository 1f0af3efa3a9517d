"""Names of picture files: by the clock, never over another file, never from a prompt."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from pathlib import Path


def save_exclusively(path: Path, data: bytes) -> None:
    """Write `data` to the new file `path`, whole or not at all.

    Raises:
        FileExistsError: `path` exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=".unfinished-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(unfinished, 0o666 & ~mask)
        os.link(unfinished, path)  # fails where the name is taken, unlike a rename
    finally:
        os.unlink(unfinished)


def save_in(folder: Path, extension: str, data: bytes) -> Path:
    """Write `data` to `folder` as `image_YYYYmmdd_HHMMSS.<extension>`, with `_2`, `_3` … where that is taken."""
    name = time.strftime("image_%Y%m%d_%H%M%S")
    for number in itertools.count(1):
        path = folder / f"{name}{'' if number == 1 else f'_{number}'}.{extension}"
        try:
            save_exclusively(path, data)
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable")
