"""Loads on the least Triton there is: when requests are sent, how many at once, and what a failure does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from triptych_lab.bench.errors import BenchError
from triptych_lab.bench.load import draw_all, replay
from triptych_lab.workload import Arrival


@pytest.fixture(scope="module")
def url():
    command = [sys.executable, "-m", "tests.client.least_triton"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as server:
        yield server.stdout.readline().strip()
        server.terminate()


def test_an_open_loop_sends_when_requests_are_due(url):
    run = replay(url, [Arrival(0.2, {"prompt": "a fox", "seed": k}) for k in range(3)])
    assert [answer.due_s for answer in run.answers] == pytest.approx([0.2, 0.4, 0.6])
    assert [answer.parameters["seed"] for answer in run.answers] == [0, 1, 2]
    assert all(0 < latency < 30 for latency in run.latencies_s)
    assert all(answer.timings == {"total_ms": 5.0} for answer in run.answers)
    assert run.counters == []  # this Triton knows no verbs


def test_a_closed_loop_draws_each_request_once(url):
    requests = [{"prompt": "a fox", "seed": k} for k in range(7)]
    assert 0 < draw_all(url, requests, users=3) < 60


@pytest.mark.parametrize(
    "load", [lambda url, wrong: replay(url, [wrong]), lambda url, wrong: draw_all(url, [wrong.parameters], 2)]
)
def test_half_a_measurement_is_none(url, load):
    with pytest.raises(BenchError, match="a request of the measurement failed: seed: "):
        load(url, Arrival(0.0, {"prompt": "a fox", "seed": "seven"}))
