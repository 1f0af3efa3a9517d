"""Whole steps on a simulated GPU: the same numbers as around a model that only predicts, in any company."""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from triptych_contract.sdxl.settings import SdxlSettings
from triptych_demo import demo_build
from triptych_export.errors import ExportError
from triptych_serving.denoiser import Conditioning
from triptych_serving.engine import Engine
from triptych_serving.job import Job, Status
from triptych_serving.manifest import Manifest
from triptych_serving.metrics import Metrics
from triptych_serving.phase import Blend, Phase, Start
from triptych_serving.policy import Policy
from triptych_serving.sdxl.walk import BASE, REFINER
from triptych_serving.tables import load_tables
from triptych_serving.tensorrt.device import OutOfMemory
from triptych_serving.tensorrt.homes import Homes

from ..cards import card
from ..serving.loop import FakeReply, table, walk
from ..simulated import SimulatedDevice
from .small import MOST_ROWS, Small

MANIFEST = Manifest.load(demo_build("sdxl"))
PAIRS = {
    (sampler, schedule): one
    for sampler, of in MANIFEST.model.samplers.items()
    for schedule, one in of.schedules.items()
}


class Clock:
    """A millisecond later whenever it is asked."""

    now = 0.0

    def __call__(self):
        self.now += 0.001
        return self.now


class Served:
    """An engine around a base and a refiner, turned by hand."""

    def __init__(self, base, refiner):
        self.clock = Clock()
        denoisers = {BASE: base, REFINER: refiner}
        policy = Policy(MOST_ROWS, dict.fromkeys(denoisers, 1e-6))
        self.engine = Engine(denoisers, policy, Metrics(), max_queue_seconds=1e9, clock=self.clock)

    def submit(self, make):
        job = make(self.clock.now)
        self.engine.submit(job)
        return job

    def turn(self):
        self.engine.turn(wait=False)

    def finish(self):
        self.turn()
        while self.engine.books.jobs or self.engine._flight:
            self.turn()

    def alone(self, make):
        """The latents of a job that nobody else is beside."""
        job = self.submit(make)
        self.finish()
        assert job.status is Status.COMPLETED, job.reply.error
        return job.reply.latents


def maker(way, *, seed=0, side=8, guidance=5.0, rescale=0.0, masked=False, text=0.3, models=None, **given):
    """What makes jobs, all alike, that go this way; `models` are their conditioning by model."""
    settings = SdxlSettings.parse({"prompt": b"a fox", "seed": seed, **given}, card())
    rows, shape = int(max(way.batch_rows)), (4, side, side)
    embeds = np.array([[-text], [text]], np.float32)[-rows:]

    def begin(generator, _previous):
        conditionings = models or {name: Conditioning({"text_embeds": embeds}) for name in way.denoisers}
        latents = generator.randn(shape) * np.float32(way.table.init_noise_sigma)
        if not masked:
            return Start(latents, conditionings)
        clean, noise = (generator.randn(shape) for _ in range(2))
        mask = (np.arange(side) < side // 2).astype(np.float32) * np.ones((1, side, 1), np.float32)
        return Start(latents, conditionings, Blend(clean, noise, mask))

    phase = Phase(way, shape, guidance, begin, guidance_rescale=rescale)

    def make(now):
        return Job(str(uuid.uuid4()), settings, [phase], FakeReply(), arrived=now, submitted=now)

    return make


@pytest.fixture
def small(tmp_path):
    return Small(tmp_path)


def on_host(small):
    return Served(small.host, small.host)


def on_device(small):
    homes = Homes(small.device)
    served = Served(*(small.denoiser(homes=homes) for _ in range(2)))
    served.homes = homes
    return served


def off(got, wanted):
    """The largest difference, relative to the largest value."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def test_every_sampler_and_schedule_makes_what_it_makes_around_a_model(small):
    device, host = on_device(small), on_host(small)
    tables = {one.path: load_tables(MANIFEST.build / one.path) for one in PAIRS.values()}
    ways = {path: walk(one.steps(20)) for path, one in tables.items()}
    ways |= {(path, "middle"): walk(one.steps(9, 4 * int(one.order))) for path, one in tables.items()}
    makers = {key: maker(way, seed=k, rescale=0.7 * (k % 2)) for k, (key, way) in enumerate(ways.items())}
    jobs = {key: device.submit(make) for key, make in makers.items()}
    device.finish()
    exact = 0
    for key, job in jobs.items():
        wanted = host.alone(makers[key])
        assert off(job.reply.latents, wanted) <= 1e-5, key
        exact += np.array_equal(job.reply.latents, wanted)
    assert len(PAIRS) >= 172
    assert exact >= len(jobs) // 2  # all without rescaling, which is in double precision on the host


@pytest.mark.parametrize("opset", [13, 17, 18, 22])
def test_graphs_of_other_opsets_take_the_step_as_well(tmp_path, opset):
    small = Small(tmp_path, opset=opset)
    make = maker(walk(table(5, history=2, noise=0.2)), rescale=0.5)
    assert off(on_device(small).alone(make), on_host(small).alone(make)) <= 1e-5


def test_a_model_that_takes_one_timestep_takes_the_step_as_well(tmp_path):
    small = Small(tmp_path, one_timestep=True)
    make = maker(walk(table(5, history=2, noise=0.2)))
    np.testing.assert_array_equal(on_device(small).alone(make), on_host(small).alone(make))


def test_a_graph_of_an_old_opset_is_refused(tmp_path):
    with pytest.raises(ExportError, match="opset 12 given; supported with engines: 13 or newer"):
        Small(tmp_path, opset=12)


def mixed(count):
    """Requests of all kinds, by number: makers, when they come, and what may end them early."""
    random = np.random.default_rng(1)
    tables = [load_tables(MANIFEST.build / path) for path in sorted({one.path for one in PAIRS.values()})]
    made = []
    for seed in range(count):
        steps = int(random.integers(2, 14))
        rows = tables[random.integers(len(tables))].steps(steps)
        kind = {
            "guided": random.random() < 0.7,
            "guided_until": int(random.integers(len(rows) + 1)) if random.random() < 0.4 else None,
            "refiner_from": int(random.integers(1, len(rows))) if random.random() < 0.3 and len(rows) > 1 else None,
        }
        options = {
            "seed": seed,
            "side": int(random.choice([8, 8, 8, 12])),
            "rescale": float(random.choice([0, 0, 0.7])),
            "masked": random.random() < 0.25,
            "tenant": f"tenant {random.integers(3)}".encode(),
            "text": float(random.random()),
        }
        made.append((maker(walk(rows, **kind), **options), random.random() < 0.1, random.random() < 0.1))
    return made


@pytest.mark.parametrize("options", [{}, {"fixed_rows": 2}, {"fixed_rows": 4}], ids=["plain", "pairs", "fours"])
def test_two_hundred_mixed_requests_are_as_alone_whoever_goes_meanwhile(tmp_path, options):
    small = Small(tmp_path, SimulatedDevice(tactics=bool(options)))
    homes, random = Homes(small.device), np.random.default_rng(2)
    served, requests = Served(*(small.denoiser(homes=homes, **options) for _ in range(2))), mixed(200)
    pieces, waiting, living = small.device.pieces, list(requests), []
    jobs = []
    while waiting or served.engine.books.jobs or served.engine._flight:
        for make, late, goes in [waiting.pop() for _ in range(min(len(waiting), random.poisson(0.8)))]:
            job = served.submit(lambda now, make=make: make(now))
            if late:
                job.settings = replace(job.settings, deadline_ms=int(random.integers(20, 400)))
            jobs.append((job, make))
            living += [job] * goes
        if living and random.random() < 0.2:
            gone = living.pop(random.integers(len(living)))
            served.engine.cancel(gone.id, gone.settings.tenant, FakeReply())
        served.turn()
    ended = Counter(job.status for job, _ in jobs)
    assert ended[Status.COMPLETED] > 150
    assert ended[Status.CANCELLED] > 15
    assert sum(ended.values()) == 200
    assert (len(homes), small.device.pieces) == (0, pieces)
    for job, make in jobs:
        assert job.reply.answers == 1
        if job.status is Status.COMPLETED:
            np.testing.assert_array_equal(job.reply.latents, served.alone(make))


def test_the_next_step_is_started_before_the_last_one_is_waited_for(small):
    served, doing = on_device(small), []
    started, waited = small.device.mark, small.device.do_until
    small.device.mark = lambda: doing.append("start") or started()
    small.device.do_until = lambda mark: doing.append("wait") or waited(mark)
    served.submit(maker(walk(table(4))))
    served.finish()
    assert doing == ["start", "start", "wait", "start", "wait", "start", "wait", "wait"]


def test_who_comes_in_the_first_half_of_a_step_is_in_the_next(small):
    served = on_device(small)
    first = served.submit(maker(walk(table(8)), seed=1))
    served.turn()
    served.engine.books.policy.seconds_per_cost[BASE] = 1e3  # a step is long
    second = served.submit(maker(walk(table(8)), seed=2))

    def half_over():
        assert (first.steps_done, second.steps_done) == (1, 0)
        served.clock.now += 1e6

    served.engine._inbox.put(half_over)
    served.engine.turn(wait=True)
    assert (first.steps_done, second.steps_done) == (2, 1)


def test_a_step_moves_numbers_and_noise_and_the_last_one_the_latents_back(small):
    served, rows = on_device(small), table(6, noise=0.1)
    for seed in range(3):
        served.submit(maker(walk(rows), seed=seed))
    served.turn()
    served.turn()
    before = small.device.done.copy()
    served.turn()
    moved = small.device.done - before
    noise, numbers = 3 * 4 * 8 * 8 * 4, 6 * (13 + 1 + 1 + 2) * 4
    assert moved["bytes of uploads"] == noise + numbers
    assert moved["launches"] == 1
    assert not moved["downloads"]
    assert not moved["copies"]  # but within the graph
    assert not moved["synchronizations"]
    assert not moved["allocations"]
    served.finish()
    assert (small.device.done - before)["bytes of downloads"] == 3 * 2 * 4 * 8 * 8 * 4


def test_a_preview_is_of_the_step_that_was_done_last(small):
    device, host = on_device(small), on_host(small)
    make, pictures = maker(walk(table(5))), []
    for served in (device, host):
        job, seen = served.submit(make), []
        for _ in range(4):
            served.engine.watch(job.id, job.settings.tenant, 99, FakeReply(), preview=True)
            served.turn()
            seen.append(job.newest)
        pictures.append(seen)
    assert pictures[0][0] is None
    for ours, theirs in zip(pictures[0][1:], pictures[1], strict=False):
        assert ours.row == theirs.row
        np.testing.assert_array_equal(ours.latents, theirs.latents)
        np.testing.assert_array_equal(ours.noise_pred, theirs.noise_pred)


def test_memory_that_is_missing_for_one_request_fails_that_one_only(small):
    served = on_device(small)
    first = served.submit(maker(walk(table(6)), seed=1))
    served.turn()
    small.device.capacity -= small.device.free_bytes
    second = served.submit(maker(walk(table(6)), seed=2))
    served.turn()
    assert second.status is Status.FAILED
    assert "GPU memory" in str(second.reply.error)
    small.device.capacity = 1 << 40
    served.finish()
    assert first.status is Status.COMPLETED
    np.testing.assert_array_equal(first.reply.latents, served.alone(maker(walk(table(6)), seed=1)))
    assert served.engine.books.estimate == 0


def test_a_step_that_fails_on_the_device_fails_its_jobs_and_no_others(small):
    served = on_device(small)
    failed = [served.submit(maker(walk(table(6)), seed=seed)) for seed in range(2)]
    served.turn()

    def broken():
        raise OutOfMemory("x", 1, 0, 1)

    small.device.enqueue(broken)
    served.turn()
    served.turn()
    assert {job.status for job in failed} == {Status.FAILED}
    served.alone(maker(walk(table(3)), seed=3))
    assert served.engine.books.estimate == pytest.approx(0)


def test_predicting_between_two_steps_changes_neither(small):
    served, make = on_device(small), maker(walk(table(6, history=2, noise=0.3)), seed=5)
    wanted = served.alone(make)
    job = served.submit(make)
    base = served.engine.steps[BASE]
    while not job.status.ended:
        served.turn()
        sample = np.ones((3, 4, 8, 8), np.float32)
        conditioning = [Conditioning({"text_embeds": np.zeros((1, 1), np.float32)}) for _ in range(3)]
        got = base.predict(sample, np.zeros(3, np.float32), conditioning)
        np.testing.assert_array_equal(got, small.host.predict(sample, np.zeros(3, np.float32), conditioning))
    np.testing.assert_array_equal(job.reply.latents, wanted)


def test_a_table_that_looks_back_further_than_slots_do_is_named(small):
    served = on_device(small)
    rows = replace(table(3), latents=np.ones((3, 4), np.float32))
    job = served.submit(maker(walk(rows)))
    served.finish()
    assert "sampler table: 4 of the history given; legal: at most 3" in str(job.reply.error)
