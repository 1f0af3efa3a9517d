"""Names of picture files: by the clock, never over another file, never from a prompt."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import time
from pathlib import Path

# What a file system without hard links says: FAT, some network and container mounts.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def save_exclusively(path: Path, data: bytes) -> None:
    """Write `data` to the new file `path`, whole or not at all.

    Raises:
        FileExistsError: `path` exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".unfinished-{secrets.token_hex(8)}"
    _write_new(unfinished, data)
    try:
        os.link(unfinished, path)  # fails where the name is taken, unlike a rename
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _write_new(path, data)
    finally:
        unfinished.unlink()


def _write_new(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        try:
            file.write(data)
            file.flush()
        except BaseException:
            path.unlink()
            raise


def save_in(folder: Path, extension: str, data: bytes) -> Path:
    """Write `data` to `folder` as `image_YYYYmmdd_HHMMSS.<extension>`, with `_2`, `_3` … where that is taken."""
    folder.mkdir(parents=True, exist_ok=True)  # here, as a file in its place must not pass for a name that is taken
    name = time.strftime("image_%Y%m%d_%H%M%S")
    for number in itertools.count(1):
        path = folder / f"{name}{'' if number == 1 else f'_{number}'}.{extension}"
        try:
            save_exclusively(path, data)
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable")
