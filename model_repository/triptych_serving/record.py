"""What each model's process notes for the supervisor: a page of counters, which can be read whatever the process does."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

FOLDER = "TRIPTYCH_RECORDS"
# Files in that folder by which the supervisor speaks to the processes.
DRAINING, CUT_OFF = ".draining", ".cut-off"
BEAT_S = 0.1
_LAYOUT = struct.Struct("4Q")


class Counts(NamedTuple):
    """Of one process, since it began.

    `beats` grow while it runs; `executed` are the calls of `execute` that have ended. Of the requests for pictures, without
    those that are turned away, `owed` wait for its answer and `passed` have had one that was no error.
    """

    beats: int
    executed: int
    owed: int
    passed: int


class Record:
    """The writing end, for any thread. Where nobody reads it, it counts all the same."""

    def __init__(self) -> None:
        self.on_cut_off: Callable[[], None] = lambda: (
            None
        )  # called once, when no more time is left to what is in flight
        self._lock = threading.Lock()
        self._parent = 0
        self._keep(None, "")

    def begin(self, model: str, environment: Mapping[str, str] = os.environ) -> None:
        """Count from nothing, and beat from now on, where `triptych serve` reads it if that started this process.

        This process ends with its parent then.
        """
        folder = Path(environment[FOLDER]) if FOLDER in environment else None
        self._keep(folder, model)
        self._parent = os.getppid() if folder else 0
        threading.Thread(target=self._beat, name="record", daemon=True).start()

    def _keep(self, folder: Path | None, model: str) -> None:
        self._folder = folder
        self._page = memoryview(_page(folder / model if folder else None)).cast("Q")

    def executed(self) -> None:
        self._add(1, 1)

    def take(self, requests: int) -> None:
        self._add(2, requests)

    def answer(self, requests: int, *, passed: bool) -> None:
        self._add(3, requests if passed else 0)  # first: who reads in between still sees a request on its way
        self._add(2, -requests)

    def draining(self) -> bool:
        """Whether the server stops, and no new request should begin."""
        return self._said(DRAINING)

    def _said(self, word: str) -> bool:
        return self._folder is not None and (self._folder / word).exists()

    def _beat(self) -> None:
        cut_off = False
        while True:
            self._add(0, 1)
            if (
                self._parent and os.getppid() != self._parent
            ):  # a stub that ends itself may hang in that, with all its memory
                os.kill(os.getpid(), signal.SIGKILL)
            if not cut_off and self._said(CUT_OFF):
                cut_off = True
                self.on_cut_off()
            time.sleep(BEAT_S)

    def _add(self, index: int, count: int) -> None:
        with self._lock:
            self._page[index] += count


def read(folder: Path) -> dict[str, Counts]:
    """The counts of every model that keeps a record in the folder, by its name."""
    files = [file for file in folder.iterdir() if not file.name.startswith(".")]
    return {
        file.name: Counts(*_LAYOUT.unpack(data)) for file in files if len(data := file.read_bytes()) == _LAYOUT.size
    }


def _page(path: Path | None) -> mmap.mmap:
    if path is None:
        return mmap.mmap(-1, _LAYOUT.size)
    with path.open("w+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, _LAYOUT.size)  # a full disk is an error here, not a fault later
        except OSError as error:
            raise OSError(
                error.errno, f"{error.strerror}; TMPDIR names a folder for the run's files", str(path)
            ) from None
        return mmap.mmap(file.fileno(), _LAYOUT.size)
