"""Compare a picture over the HTTP front with the same one over gRPC."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Any

from ..errors import BenchError
from ..load import draw_all
from ..requests import same
from ..serving import started
from ..target import Setting, Sides, Target, at_most

NAME = "front_overhead"
IMAGES = 8


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Measure median seconds of a guided picture of 20 steps, end to end: over HTTP, through gRPC."""
    import httpx2

    requests = same(setting.count(IMAGES))
    with started(setting.builds) as served, _front(served.url) as address, httpx2.Client(base_url=address) as client:
        for request in requests[:2]:
            _seconds(client, request)
        yield Sides(
            lambda: {NAME: median(_seconds(client, request) for request in requests)},
            lambda: {NAME: median(draw_all(served.url, [request], users=1) for request in requests)},
        )


@contextmanager
def _front(url: str) -> Iterator[str]:
    command = [sys.executable, "-c", "from triptych.cli import main; main()", "api", "--url", url, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603
    try:
        address = process.stdout.readline().strip() if process.stdout else ""
        if not address:
            raise BenchError("the HTTP front does not start")
        yield address
    finally:
        process.terminate()
        process.wait()


def _seconds(client: Any, request: Mapping[str, Any]) -> float:
    began = time.monotonic()
    answer = client.post("/v1/images/generations", json=dict(request), timeout=600)
    if answer.status_code != 200:
        raise BenchError(f"a request of the measurement failed: {answer.text}")
    return time.monotonic() - began


TARGET = Target(
    NAME,
    "one picture end to end over the HTTP front ÷ over gRPC, the client's own connection each",
    {NAME: at_most(1.05)},
    sides,
)
