"""How `vae_encoder` hands on what it makes of a picture: in a file, so that nobody waits for a process that died.

Triton would wait for the late answer of a dead process for ever. So `vae_encoder` answers at once, with the name of a file
that it holds locked until it is written, and `denoise` waits for that lock, which the kernel takes off the dead as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .record import FOLDER

POLL_S = 0.01
# Whoever waits for a file has it open by then; nobody will come for one that was made so long ago, in seconds.
FORGOTTEN_S = 600
Arrays = Mapping[str, NDArray[Any]]


def folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Give the folder that all processes of one Triton share, private to its user.

    Raises:
        OSError: somebody else has made one of that name.
    """
    base = Path(environment.get(FOLDER) or tempfile.gettempdir())
    path = base / f".triptych-pictures-{os.getuid()}-{os.getppid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path}: somebody else's")
    return path


class Pending:
    """A file to be filled, once and by any thread. Where this process dies before, whoever waits for it learns that."""

    def __init__(self, folder: Path) -> None:
        _sweep(folder)
        self.name = uuid.uuid4().hex
        self._file = (folder / self.name).open("xb")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def fill(self, arrays: Arrays) -> None:
        """Write and close it, which takes the lock off."""
        with self._file:
            np.savez(self._file, **arrays)


class Fetching:
    """Waits for such files in one thread, and takes them away."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: dict[str, tuple[Any, Callable[[Arrays | None], None]]] = {}
        self._some = threading.Event()
        threading.Thread(target=self._run, name="pictures", daemon=True).start()

    def fetch(self, name: str, then: Callable[[Arrays | None], None]) -> None:
        """Call `then`, from another thread, with what the file of this name was filled with, or None if it never will be.

        Raises:
            ValueError, OSError: there is no such file.
        """
        file = (self._folder / uuid.UUID(name).hex).open("rb")
        self._waiting[name] = file, then
        self._some.set()

    def _run(self) -> None:
        while self._some.wait():
            self._some.clear()
            while self._waiting:
                for name in list(self._waiting):
                    self._look(name)
                self._some.wait(POLL_S)

    def _look(self, name: str) -> None:
        file, then = self._waiting[name]
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        del self._waiting[name]
        with file:
            arrays = _read(file)
        (self._folder / uuid.UUID(name).hex).unlink(missing_ok=True)
        then(arrays)


def _sweep(folder: Path) -> None:
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > FORGOTTEN_S:
                file.unlink()


def _read(file: Any) -> Arrays | None:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
