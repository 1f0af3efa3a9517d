"""`triptych serve` as others start it: its process, what it says, and the processes and shared memory below it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from triptych_server.layout import RUN_PREFIX, SHM

LOOP = "denoise"
START_S, POLL_S = 60.0, 0.05
RESTART = "starting again"


class Service:
    """A server of the demo models, on free ports. `with` starts it, and kills what is left of it."""

    def __init__(self, options: Sequence[str] = ("--cache-mb=0", "--grace=300")) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="chaos-")
        ports = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")
        self.process = subprocess.Popen(  # noqa: S603 - our own command
            [str(Path(sys.executable).parent / "triptych"), "serve", *ports, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": self._folder.name},
        )
        self.lines: list[tuple[float, str]] = []  # what it said, and when
        self._news = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Service:
        assert self.process.stdout is not None  # noqa: S101 - a pipe was asked for
        self.url = self.process.stdout.readline().removeprefix("gRPC").strip()
        if not self.url:
            raise RuntimeError("\n".join(text for _, text in self.lines) or "the server did not start")
        (self.run,) = Path(self._folder.name).glob(f"{RUN_PREFIX}*")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._folder.cleanup()

    def _read(self) -> None:
        assert self.process.stderr is not None  # noqa: S101 - a pipe was asked for
        for line in self.process.stderr:
            with self._news:
                self.lines.append((time.monotonic(), line.strip()))
                self._news.notify_all()

    def said(self, words: Sequence[str], since: float, timeout_s: float = 60) -> float:
        """Wait for a line with some of these words after `since`; how many seconds after.

        Raises:
            TimeoutError: it is not said.
        """

        def heard() -> float | None:
            return next(
                (at - since for at, line in self.lines if at >= since and any(one in line for one in words)), None
            )

        with self._news:
            if not self._news.wait_for(lambda: heard() is not None, timeout_s):
                raise TimeoutError(f"{words!r} was not said within {timeout_s:g} s")
            return heard() or 0.0

    def restarts(self) -> int:
        """How often all of Triton was started again."""
        with self._news:
            return sum(RESTART in line for _, line in self.lines)

    def processes(self) -> list[psutil.Process]:
        """The living ones below it; a killed one stays as a zombie until Triton ends."""
        return [child for child in psutil.Process(self.process.pid).children(recursive=True) if _lives(child)]

    def named(self, name: str) -> psutil.Process:
        """The newest process of a model, or `tritonserver`; where all just start again, as soon as it is there."""
        wanted, ends = (
            "bin/tritonserver" if name == "tritonserver" else f"/{name}/1/model.py",
            time.monotonic() + START_S,
        )
        while not (found := [process for process in self.processes() if wanted in _command_line(process)]):
            if time.monotonic() > ends:
                raise TimeoutError(f"no process of {name!r} within {START_S:g} s")
            time.sleep(POLL_S)
        return max(found, key=psutil.Process.create_time)

    def models(self) -> list[str]:
        """The models that have a process each."""
        lines = map(_command_line, self.processes())
        return sorted(line.split("/1/model.py")[0].rsplit("/", 1)[1] for line in lines if "/1/model.py" in line)

    def regions(self) -> list[Path]:
        """Its shared memory."""
        return [*SHM.glob(f"{self.run.name}_*")]

    def terminate(self, timeout_s: float) -> int:
        """Send SIGTERM and wait; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""
