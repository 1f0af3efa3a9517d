"""What each model's process notes for the supervisor: a page of counters, which can be read whatever the process does.

And what the supervisor tells the processes, by files beside those pages.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

FOLDER = "TRIPTYCH_RECORDS"
# Files in that folder by which the supervisor speaks to the processes.
DRAINING, CUT_OFF, REPLACED = ".draining", ".cut-off", ".replaced"
BEAT_S = 0.1
# A piece of work is late once it has taken so many times its usual time, and no fewer seconds than these.
LATE_TIMES, LATE_S = 50, 2.0
_LAYOUT = struct.Struct("7Q")


class Counts(NamedTuple):
    """Of one process, since it began.

    `beats` grow while it runs; `executed` are the calls of `execute` that have ended. Of the requests for pictures, without
    those that are turned away, `owed` wait for its answer and `passed` have had one that was no error. `kept` of those that are
    owed are not Triton's any more: no other process can answer them. `work` is the number of the piece of work that it has
    been at for longest, 0 when idle, which is late after `allowed_ms`.
    """

    beats: int
    executed: int
    owed: int
    passed: int
    kept: int = 0
    work: int = 0
    allowed_ms: int = 0


class Record:
    """The writing end, for any thread. Where nobody reads it, it counts all the same."""

    def __init__(self) -> None:
        self.on_cut_off: Callable[[], None] = lambda: (
            None
        )  # called once, when no more time is left to what is in flight
        self._lock = threading.Lock()
        self._parent = 0
        self._works = 0
        self._allowed: dict[int, int] = {}  # by the numbers of the pieces of work in progress
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

    def take(self, requests: int, *, kept: bool = False) -> None:
        """Owe answers to so many requests; `kept` ones outlast the call of `execute` that brought them."""
        self._add(4, requests if kept else 0)
        self._add(2, requests)

    def answer(self, requests: int, *, passed: bool, kept: bool = False) -> None:
        self._add(3, requests if passed else 0)  # first: who reads in between still sees a request on its way
        self._add(2, -requests)
        self._add(4, -requests if kept else 0)

    @contextlib.contextmanager
    def work(self, usual_s: float | None) -> Iterator[None]:
        """Do within it what usually takes so long, in seconds; None where that is not known yet."""
        if usual_s is None:
            yield
            return
        with self._lock:
            self._works += 1
            number = self._works
            self._allowed[number] = round(max(LATE_S, LATE_TIMES * usual_s) * 1000)
            self._show_work()
        try:
            yield
        finally:
            with self._lock:
                del self._allowed[number]
                self._show_work()

    def _show_work(self) -> None:
        self._page[5], self._page[6] = next(iter(self._allowed.items()), (0, 0))

    def draining(self) -> bool:
        """Whether the server stops, and no new request should begin."""
        return self._said(DRAINING)

    def replaced(self, models: Collection[str], since: float) -> str:
        """The one of these models whose process died after `since`, on the system's monotonic clock; "" where all live on.

        Ensembles that had begun by then can have no answer of it.
        """
        if not self._said(REPLACED):
            return ""
        assert self._folder is not None  # noqa: S101 - it was just looked into
        at: dict[str, float | None] = json.loads((self._folder / REPLACED).read_bytes())
        return next((one for one in models if one in at and ((back := at[one]) is None or back > since)), "")

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


def note_replaced(folder: Path, at: Mapping[str, float | None]) -> None:
    """Tell the processes since when models whose process died are there again; None of those that are not yet."""
    new = folder / f"{REPLACED}.new"
    new.write_text(json.dumps(dict(at)), encoding="utf-8")
    new.replace(folder / REPLACED)


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
