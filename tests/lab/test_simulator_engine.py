"""The simulated server does what the engine does: the same batches of the same requests at the same times."""

from __future__ import annotations

import itertools
import random
from collections import deque
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from triptych_lab.simulator import SimulatedServer
from triptych_lab.simulator.outcome import Ending, Outcome
from triptych_serving.denoiser import Conditioning
from triptych_serving.engine import Engine
from triptych_serving.errors import Overloaded
from triptych_serving.job import Job
from triptych_serving.metrics import Metrics
from triptych_serving.phase import Start
from triptych_serving.policy import Policy

from ..serving.loop import FakeClock, FakeReply
from .farms import arrival, farm, planner


class TimedDenoiser:
    """Takes the model's seconds of a fake clock, and notes its batches."""

    def __init__(self, clock, costs, receive):
        self.clock, self.costs, self.receive, self.batches = clock, costs, receive, []

    def predict(self, sample, _timestep, _conditioning):
        self.batches.append((round(self.clock.now, 9), len(sample)))
        self.clock.now += self.costs.seconds("unet", len(sample), 256)
        self.receive()  # other threads submit during a step
        return np.zeros_like(sample)

    def release(self, _conditioning):
        """Nothing is kept."""


class NotedReply(FakeReply):
    """Knows when the answer came."""

    def __init__(self, clock):
        super().__init__()
        self.clock, self.at = clock, None

    def send(self, report, latents=None):
        super().send(report, latents)
        self.at = self.clock()

    def fail(self, error):
        super().fail(error)
        self.at = self.clock()


class Noted(Outcome):
    """Remembers how each request ended, how many steps it had waited, and when."""

    def __init__(self):
        super().__init__()
        self.ends = {}

    def end(self, job, ending, at, solo_s):
        super().end(job, ending, at, solo_s)
        waited = job.steps_waited if ending is Ending.COMPLETED else None
        self.ends[job.id] = (ending, waited, pytest.approx(at, abs=1e-6))


def mixed(count, seed, *, rate=25.0):
    choose = random.Random(seed)
    return [
        arrival(
            choose.expovariate(rate),
            choose.choice([1, 4, 9, 20]),
            guidance_scale=choose.choice([1.0, 5.0]),
            guidance_end=choose.choice([0.5, 1.0]),
            tenant=choose.choice(["", "other"]) if seed % 2 else "",
            **({"deadline_ms": choose.choice([50, 400])} if seed % 3 == 0 else {}),
        )
        for _ in range(count)
    ]


def by_the_engine(requests, over):
    """Run the real loop over the same arrivals with a denoiser that only takes time."""
    clock, ends, replies = FakeClock(0.0), {}, {}
    waiting = deque(
        enumerate(zip(itertools.accumulate(request.interval_s for request in requests), requests, strict=True))
    )

    def receive():
        while waiting and waiting[0][1][0] <= clock.now:
            k, (at, request) = waiting.popleft()
            replies[str(k)] = NotedReply(clock)
            try:
                engine.submit(job(str(k), request, at, replies[str(k)]))
            except Overloaded:
                ends[str(k)] = Ending.REJECTED, None, at

    denoiser = TimedDenoiser(clock, over.spec.cost, receive)
    policy = Policy(over.spec.max_batch_rows, over.spec.cost.per_cost())
    limit = over.spec.max_queue_seconds
    engine = Engine({"unet": denoiser}, policy, Metrics(), max_queue_seconds=limit, clock=clock)
    while waiting or engine.books.jobs or not engine._inbox.empty():
        if not engine.books.jobs and engine._inbox.empty():
            clock.now = max(clock.now, waiting[0][1][0])
            receive()
        engine.turn(wait=False)
    for id, reply in replies.items():
        if reply.report:
            ends[id] = Ending.COMPLETED, reply.report["queue_steps"], reply.at
        else:
            ends.setdefault(id, (Ending.EXPIRED, None, reply.at))
    return ends, denoiser.batches


def job(id, request, at, reply):
    plan = planner()(request.parameters)
    phases = [replace(phase, begin=partial(zeros, phase.shape)) for phase in plan.phases]
    return Job(id, plan.settings, phases, reply, arrived=at, submitted=at)


def zeros(shape, _generator, _previous):
    return Start(np.zeros(shape, np.float32), {"unet": Conditioning({"text_embeds": np.zeros((2, 1), np.float32)})})


def by_the_simulator(requests, over):
    noted = Noted()
    (server,) = over.start(noted)
    assert type(server) is SimulatedServer
    now = 0.0
    for k, request in enumerate(requests):
        now += request.interval_s
        while server.next_event < now:
            server.advance()
        server.arrive(str(k), planner()(request.parameters), now)
    while server.next_event < float("inf"):
        server.advance()
    return noted.ends, noted.batches


@pytest.mark.parametrize("seed", range(12))
def test_the_same_requests_end_the_same_way_at_the_same_time(seed):
    over = farm(max_batch_rows=[2, 6, 16][seed % 3], max_queue_seconds=[1e9, 0.3][seed // 6])
    requests = mixed(120, seed)
    theirs, batches = by_the_engine(requests, over)
    ours, rows = by_the_simulator(requests, over)
    assert {ending for ending, _, _ in theirs.values()} >= {Ending.COMPLETED}
    assert ours == theirs
    assert sum(rows.values()) == len(batches)
    assert {size: sum(made == size for _, made in batches) for size in rows} == dict(rows)
