"""The HTTP front as a process of its own, and how tests ask it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TRIPTYCH = [sys.executable, "-c", "from triptych.cli import main; main()"]
# The demo's quickest picture.
SMALL = {"prompt": "a flat icon of a penguin", "size": "128x128", "seed": 3, "num_inference_steps": 4}


@dataclass
class Front:
    """A front that runs: where, and what it wrote."""

    address: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def lines(self) -> list[dict]:
        """What its audit log has so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def stop(self) -> int:
        """End it as an operator does."""
        self.process.terminate()
        return self.process.wait(60)


@contextmanager
def running(folder: Path, url: str, *options: object) -> Iterator[Front]:
    """A front of the server at `url`, on a free port, with more options."""
    log = folder / "front.log"
    command = [*TRIPTYCH, "api", "--url", url, "--port", "0", *map(str, options)]
    with log.open("a") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http"), log.read_text()
        yield Front(address, process, log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def until(true, seconds: float = 20) -> None:
    """Wait for something that will come."""
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)
