"""Compare a picture through a door of the cluster with the same one from a server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from ..errors import BenchError
from ..load import draw_all
from ..requests import same
from ..serving import started
from ..target import Setting, Sides, Target, at_most

NAME = "cluster_overhead"
IMAGES = 8
COMMAND = (
    sys.executable,
    "-c",
    "from triptych.cli import main; main()",
    "cluster",
    "--grpc-port",
    "0",
    "--cache-mb",
    "0",
)


@contextmanager
def sides(setting: Setting) -> Iterator[Sides]:
    """Measure median seconds of a guided picture of 20 steps, end to end: through a cluster's door, from a server."""
    requests = same(setting.count(IMAGES))
    with started(setting.builds) as served, _cluster(setting) as door:
        draw_all(door, requests[:2], users=1)
        yield Sides(
            lambda: {NAME: median(draw_all(door, [request], users=1) for request in requests)},
            lambda: {NAME: median(draw_all(served.url, [request], users=1) for request in requests)},
        )


@contextmanager
def _cluster(setting: Setting) -> Iterator[str]:
    builds = [word for build in setting.builds for word in ("--build", str(build))]
    process = subprocess.Popen([*COMMAND, *builds], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # noqa: S603
    try:
        told = (line.split() for line in process.stdout or ())  # Ray may have something to say before
        address = next((words[1] for words in told if words[:1] == ["gRPC"]), None)
        if address is None:
            raise BenchError("the cluster does not start")
        yield address
    finally:
        process.terminate()
        process.wait()


TARGET = Target(
    NAME,
    "one picture end to end through a door of `triptych cluster` ÷ from a server, the client's own connection each",
    {NAME: at_most(1.10)},
    sides,
)
