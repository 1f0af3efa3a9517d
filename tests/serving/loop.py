"""A loop under test: a denoiser that counts, replies that remember, a clock that is set by hand."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from triptych_contract.sdxl.settings import SdxlSettings
from triptych_contract.stable_cascade.card import CascadeCard
from triptych_serving.denoiser import Conditioning
from triptych_serving.engine import Engine
from triptych_serving.job import Job
from triptych_serving.metrics import Metrics
from triptych_serving.phase import Phase, noise_alone
from triptych_serving.policy import Policy
from triptych_serving.sdxl.walk import BASE, REFINER
from triptych_serving.tables import SamplerTable
from triptych_serving.walk import Walk

from ..cards import card

PRIOR, DECODER = CascadeCard.denoisers
STEP_SECONDS = 0.1


@dataclass
class FakeReply:
    report: dict[str, Any] | None = None
    latents: Any = None
    error: Exception | None = None
    gone: bool = False
    answers: int = 0

    def send(self, report, latents=None):
        self.report, self.latents = report, latents
        self.answers += 1

    def fail(self, error):
        self.error = error
        self.answers += 1

    def is_cancelled(self):
        assert self.answers == 0, "asked after the answer: Triton would crash"
        return self.gone


@dataclass
class FakeClock:
    now: float = 100.0

    def __call__(self):
        return self.now


@dataclass
class FakeDenoiser:
    """Predicts half the sample; takes STEP_SECONDS of the fake clock; fails or spoils rows when told."""

    clock: FakeClock
    batches: list[list[int]] = field(default_factory=list)
    timesteps: list[list[float]] = field(default_factory=list)
    error: Exception | None = None
    spoil: Conditioning | None = None
    released: list[Conditioning] = field(default_factory=list)

    def release(self, conditioning):
        self.released.append(conditioning)

    def predict(self, sample, timestep, conditioning):
        self.clock.now += STEP_SECONDS
        self.batches.append([len(c) for c in conditioning])
        self.timesteps.append(timestep.tolist())
        if self.error is not None:
            raise self.error
        out = sample * np.float32(0.5) + timestep[:, None, None, None] * np.float32(1e-3)
        ends = list(itertools.accumulate(len(c) for c in conditioning))
        for c, end in zip(conditioning, ends, strict=True):
            if c is self.spoil:
                out[end - len(c) : end] = np.nan
        return out


def table(steps, *, history=1, noise=0.0):
    """An ancestral-like sampler of `steps` rows."""
    fractions = np.linspace(1, 0.1, steps, dtype=np.float32)
    return SamplerTable(
        init_noise_sigma=2.0,
        order=1,
        timestep=fractions * 999,
        input_scale=fractions,
        latents=np.tile(np.float32([1.0, 0.25][:history]), (steps, 1)),
        noise_preds=np.tile(np.float32([-0.3, 0.1][:history]), (steps, 1)),
        noise=np.full(steps, noise, np.float32),
        draws=np.full(steps, int(noise != 0), np.uint8),
        clean=np.ones(steps, np.float32),
        added=fractions,
    )


def walk(rows, *, guided=True, refiner_from=None, guided_until=None):
    """A walk over all of a table's rows."""
    steps = len(rows)
    cut = steps if refiner_from is None else refiner_from
    until = steps if guided_until is None else guided_until
    return Walk(rows, (BASE,) * cut + (REFINER,) * (steps - cut), guided & (np.arange(steps) < until))


def phase(way, side=4, *, guidance=5.0, name="text_embeds", channels=4, **conditions):
    """A phase that starts from noise alone; `conditions` makes more conditioning from what the phase before ended with."""
    shape, rows = (channels, side, side), int(max(way.batch_rows))

    def begin(generator, previous):
        arrays = {name: np.zeros((rows, 2), np.float32)} | {key: make(previous) for key, make in conditions.items()}
        conditioning = Conditioning(arrays)
        return noise_alone(way, shape, generator, dict.fromkeys(way.denoisers, conditioning))

    return Phase(way, shape, guidance, begin)


class Loop:
    """An engine turned by hand: `turn()` does what its thread would do once."""

    def __init__(self, *, max_batch_rows=8, max_queue_seconds=1e9):
        self.clock = FakeClock()
        self.denoiser, self.refiner = FakeDenoiser(self.clock), FakeDenoiser(self.clock)
        self.metrics = Metrics()
        self.prior, self.decoder = FakeDenoiser(self.clock), FakeDenoiser(self.clock)
        denoisers = {BASE: self.denoiser, REFINER: self.refiner, PRIOR: self.prior, DECODER: self.decoder}
        self.policy = Policy(max_batch_rows, dict.fromkeys(denoisers, 1e-4))
        self.engine = Engine(
            denoisers,
            self.policy,
            self.metrics,
            max_queue_seconds=max_queue_seconds,
            clock=self.clock,
        )

    def job(
        self,
        steps=4,
        *,
        guidance=5.0,
        side=4,
        seed=0,
        arrived=None,
        id=None,
        job_table=None,
        on=None,
        alike=(),
        tokens=77,
        **given,
    ):
        settings = SdxlSettings.parse({"prompt": b"a fox", "seed": seed, "guidance_scale": guidance, **given}, card())
        way = walk(job_table or table(steps), guided=settings.guided(card()), **(on or {}))
        one = phase(way, side, guidance=settings.guidance_scale)
        one = replace(one, guidance_rescale=settings.guidance_rescale, one_timestep=alike, tokens=tokens)
        return self.of([one], settings, id=id, arrived=arrived)

    def of(self, phases, settings=None, *, id=None, arrived=None):
        """A job of these phases."""
        now = self.clock.now
        return Job(
            id or str(uuid.uuid4()),
            settings or SdxlSettings.parse({"prompt": b"a fox", "seed": 0}, card()),
            phases,
            FakeReply(),
            arrived=now if arrived is None else arrived,
            submitted=now,
        )

    def submit(self, *args, **options):
        job = self.job(*args, **options)
        self.engine.submit(job)
        return job

    def turn(self, times=1):
        for _ in range(times):
            self.engine.turn(wait=False)

    def finish(self):
        self.turn()
        while self.engine.books.jobs:
            self.turn()

    def ask(self, verb, *args):
        reply = FakeReply()
        getattr(self.engine, verb)(*args, reply)
        return reply
