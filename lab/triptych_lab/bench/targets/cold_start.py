"""Compare the start of a server with the loading of its files, which cannot be avoided."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from triptych_demo import demo_builds

from ..bare import load_seconds
from ..errors import BenchError
from ..target import Setting, Sides, Target, at_most

NAME = "cold_start"
SERVE = "from triptych.cli import main; main()"
OPTIONS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
END_S = 60.0


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Measure seconds: from `triptych serve` until it is ready; for ONNX Runtime to load the same files in a fresh process."""
    builds = setting.builds or tuple(demo_builds())
    yield Sides(lambda: {NAME: _start_seconds(builds)}, lambda: {NAME: sum(map(load_seconds, builds))})


def _start_seconds(builds: Sequence[Path]) -> float:
    command = [sys.executable, "-c", SERVE, "serve", *map(str, builds), *OPTIONS]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:  # noqa: S603
        try:
            assert server.stdout is not None  # noqa: S101 - a pipe was asked for
            if not server.stdout.readline():  # it prints its addresses when it is ready
                raise BenchError("cold_start: `triptych serve` ended before it was ready")
            return time.monotonic() - began
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(END_S)


TARGET = Target(
    NAME,
    "seconds from `triptych serve` to ready ÷ seconds that ONNX Runtime needs to load the same files bare",
    {NAME: at_most(2.0)},
    sides,
)
