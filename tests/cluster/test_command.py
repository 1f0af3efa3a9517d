"""`triptych cluster` as it is typed: gRPC and HTTP on this machine, and nothing left behind."""

from __future__ import annotations

import base64
import os
import re
import subprocess
from itertools import islice

import httpx2
import psutil
import pytest

from triptych_demo import demo_build

from .. import plain
from ..fronts import SMALL, TRIPTYCH, until
from .conftest import free_port

pytestmark = pytest.mark.serial


@pytest.fixture
def command(tmp_path):
    """The command with a build by URL, and what it and everything below it left at the end."""
    builds = ["--build", demo_build().as_uri(), "--store", str(tmp_path / "store")]
    ports = ["--grpc-port", "0", "--metrics-port", "0", "--http-port", str(free_port())]
    environment = {**os.environ, "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            [*TRIPTYCH, "cluster", "--cpus", "0.5", *builds, *ports],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
    yield process
    process.terminate()
    assert process.wait(120) == 0, (tmp_path / "errors").read_text()


def test_it_serves_over_grpc_and_http_until_it_is_stopped(command, url):
    # Ray may have something to say before them.
    told = (line.split() for line in command.stdout)
    addresses = dict(islice((words for words in told if words[:1] in (["gRPC"], ["metrics"], ["HTTP"])), 3))
    grpc, http, metrics = (addresses[name] for name in ("gRPC", "HTTP", "metrics"))
    below = psutil.Process(command.pid).children(recursive=True)
    listening = [one.laddr for one in psutil.net_connections("inet") if one.status == "LISTEN"]
    ours = {int(address.rpartition(":")[2]) for address in (grpc, http, metrics.removesuffix("/metrics"))}
    assert {at.ip.removeprefix("::ffff:") for at in listening if at.port in ours} == {"127.0.0.1"}
    over_http = httpx2.post(f"{http}/v1/images/generations", json=SMALL, timeout=120).json()["data"][0]["b64_json"]
    direct = {name: SMALL[name] for name in ("prompt", "seed", "num_inference_steps")} | {"width": 128, "height": 128}
    pictures = [base64.b64decode(over_http), *(plain.grpc(at, **direct)["image"] for at in (grpc, url))]
    assert pictures[0] == pictures[1] == pictures[2]
    counted = r'^triptych_completed_total\{.*node="\w+",replica="\w+"\} [1-9]'
    until(lambda: re.search(counted, httpx2.get(metrics).text, re.MULTILINE))
    told = subprocess.run(
        [*TRIPTYCH, "cluster", "status"], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert told.splitlines()[0].split()[:3] == ["server", "node", "GPU"]
    assert demo_build().as_uri() in told
    assert f"gRPC {grpc}" in told
    command.terminate()
    assert command.wait(120) == 0
    assert psutil.wait_procs(below, timeout=60)[1] == []
