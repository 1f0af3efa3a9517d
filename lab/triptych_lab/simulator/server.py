"""One server in virtual time: the loop's admission, batches and accounts as `triptych_serving.engine` has them."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from triptych_serving.denoiser import Floats
from triptych_serving.job import Job, Status
from triptych_serving.phase import Phase
from triptych_serving.policy import Policy

from .cost import CostModel
from .outcome import Ending, Outcome
from .plan import NOTHING, Plan


class _NoReply:
    """Nobody waits for a simulated answer."""

    def send(self, report: dict[str, Any], latents: Floats | None = None) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def is_cancelled(self) -> bool:
        return False


NO_REPLY = _NoReply()


class SimulatedJob(Job):
    """A job that knows what it would take alone on an idle server, in seconds."""

    solo_s = 0.0


@dataclass(frozen=True)
class Device:
    """What a server runs on, and its limits as in `denoise/config.pbtxt`."""

    cost: CostModel
    max_batch_rows: int = 16
    max_queue_seconds: float = 600.0
    _solo: dict[Plan, float] = field(default_factory=dict, repr=False)

    def solo(self, plan: Plan) -> float:
        """Seconds that a request takes alone on an idle server."""
        if plan not in self._solo:
            self._solo[plan] = self.cost.encode_s + sum(map(self._steps, plan.phases)) + self.cost.decode_s
        return self._solo[plan]

    def _steps(self, phase: Phase) -> float:
        steps = zip(phase.walk.denoisers, phase.walk.rows, strict=True)
        return sum(self.cost.seconds(denoiser, rows, phase.pixels) for denoiser, rows in steps)


class Batch(NamedTuple):
    """Steps under way, all of the same jobs: one, or as many as nothing but an arrival can change."""

    jobs: Sequence[SimulatedJob]
    denoiser: str
    rows: int
    cost: int  # of a step
    began: float
    first_s: float
    step_s: float  # of each step after the first
    steps: int = 1

    @property
    def seconds(self) -> float:
        return self.first_s + self.step_s * (self.steps - 1)

    @property
    def last(self) -> Batch:
        """Its last step."""
        done = self.first_s + self.step_s * (self.steps - 2)
        return self if self.steps == 1 else self._replace(began=self.began + done, first_s=self.step_s, steps=1)

    def until(self, time: float) -> Batch:
        """As much of it as has begun before `time`."""
        more = math.ceil((time - self.began - self.first_s) / self.step_s)
        return self._replace(steps=max(1, min(self.steps, 1 + more)))


class SimulatedServer:
    """A loop under a clock that its events set. Times are in seconds since the start."""

    def __init__(self, device: Device, policy: Policy, outcome: Outcome) -> None:
        self.device, self.policy, self.outcome = device, policy, outcome
        self.jobs: dict[str, SimulatedJob] = {}
        self.busy_s = 0.0
        self._encoding: deque[SimulatedJob] = deque()  # on their way to the loop, in the order of their arrival there
        self._answers: deque[float] = deque()  # when what is being decoded will be answered, the next first
        self._pending_cost: Counter[str] = Counter()
        self._hurried = 0  # jobs with a deadline
        self._batch: Batch | None = None
        self._owed_s, self._owed_at = 0.0, 0.0  # of the device, to encoders and decoder, and as of when

    def outstanding(self, now: float) -> int:
        """Requests that came here and are not answered at `now`."""
        self._forget_answered(now)
        return len(self.jobs) + len(self._encoding) + len(self._answers)

    def arrive(self, id: str, plan: Plan, now: float) -> None:
        """A request comes, and will be at the loop once it is encoded."""
        self._owe(self.device.cost.encode_s, now)
        at = now + self.device.cost.encode_s
        job = SimulatedJob(id, plan.settings, plan.phases, NO_REPLY, arrived=now, submitted=at)
        job.solo_s = self.device.solo(plan)
        self._encoding.append(job)
        if self._batch is not None:
            self._batch = self._batch.until(at)

    @property
    def next_event(self) -> float:
        """When `advance` has something to do; infinity where nothing is under way."""
        if self._batch is not None:
            return self._batch.began + self._batch.seconds
        return self._encoding[0].submitted if self._encoding else math.inf

    def advance(self) -> None:
        """Take in what arrived until the next event, end the step under way, begin the next."""
        now = self.next_event
        if self._batch is not None and self._batch.steps > 1:
            self._batch = self._end_all_but_one(self._batch)
        self._receive(now)  # during the last step: it is not accounted for yet
        if self._batch is not None:
            self._end_step(self._batch, now)
        self._drop_late(now)
        self._begin_step(now)

    def _receive(self, now: float) -> None:
        while self._encoding and self._encoding[0].submitted <= now:
            job = self._encoding.popleft()
            if self.policy.seconds(self._pending_cost) > self.device.max_queue_seconds:
                self.outcome.end(job, Ending.REJECTED, job.submitted)
            else:
                self._pending_cost.update(job.cost)
                self.jobs[job.id] = job
                self._hurried += job.deadline is not None

    def _drop_late(self, now: float) -> None:
        if not self._hurried:
            return
        late = [job for job in self.jobs.values() if job.deadline is not None and now >= job.deadline]
        for job in late:
            self._remove(job)
            self.outcome.end(job, Ending.EXPIRED, now)

    def _begin_step(self, now: float) -> None:
        self._rest(now)
        self._batch = None
        jobs = cast("list[SimulatedJob]", self.policy.pick(self.jobs.values(), now))
        if not jobs:
            return
        for job in jobs:
            if job.started is None:
                job.started, job.status = now, Status.RUNNING
        denoiser, rows, pixels = jobs[0].denoiser, sum(job.rows for job in jobs), jobs[0].phase.pixels
        step_s = self.device.cost.seconds(denoiser, rows, pixels)
        batch = Batch(jobs, denoiser, rows, rows * pixels, now, step_s + self._owed_s, step_s, self._steps_alike(jobs))
        self._owed_s = 0.0
        self._batch = batch.until(self._encoding[0].submitted) if self._encoding else batch

    def _steps_alike(self, jobs: Sequence[SimulatedJob]) -> int:
        """Steps that nothing but an arrival can keep from being this batch again: there is nobody else to take turns with."""
        alone = len(jobs) == len(self.jobs) and not self._hurried and len({job.settings.tenant for job in jobs}) == 1
        return min(map(_alike, jobs)) if alone and self.policy.lasts(jobs) else 1

    def _end_all_but_one(self, batch: Batch) -> Batch:
        """Let all steps but the last have been made; none of them ends a phase. Returns the last."""
        done, last = batch.steps - 1, batch.last
        seconds = last.began - batch.began
        for job in batch.jobs:
            job.step += done
            job.steps_done += done
            job.served += seconds
        self.policy.learn(batch.denoiser, batch.rows, batch.cost, batch.first_s)
        for _ in range(done - 1):
            self.policy.learn(batch.denoiser, batch.rows, batch.cost, batch.step_s)
        self._account(batch, done, seconds)
        return last

    def _end_step(self, batch: Batch, now: float) -> None:
        for job in batch.jobs:
            job.advance(NOTHING)
            job.served += batch.seconds
        self.policy.learn(batch.denoiser, batch.rows, batch.cost, batch.seconds)
        self._account(batch, 1, batch.seconds)
        for job in batch.jobs:
            if job.finished:
                self._complete(job, now)

    def _account(self, batch: Batch, steps: int, seconds: float) -> None:
        self._pending_cost[batch.denoiser] -= batch.cost * steps
        self.busy_s += seconds
        self.outcome.step(batch.rows, steps)

    def _complete(self, job: SimulatedJob, now: float) -> None:
        answered = now + self.device.cost.decode_s
        self._owe(self.device.cost.decode_s, now)
        self._remove(job)
        self._forget_answered(now)
        self._answers.append(answered)
        self.outcome.end(job, Ending.COMPLETED, answered)

    def _forget_answered(self, now: float) -> None:
        while self._answers and self._answers[0] <= now:
            self._answers.popleft()

    def _remove(self, job: SimulatedJob) -> None:
        del self.jobs[job.id]
        self._pending_cost.subtract(job.cost)
        self._hurried -= job.deadline is not None

    def _owe(self, seconds: float, now: float) -> None:
        """Work beside the loop on its device: the next step takes that much longer, or idle time pays for it."""
        if self.device.cost.shared:
            self._rest(now)
            self._owed_s += seconds

    def _rest(self, now: float) -> None:
        """Let idle time since the last account pay for what is owed; the time of a step is the step's."""
        if self._batch is None:
            self._owed_s = max(0.0, self._owed_s - (now - self._owed_at))
        self._owed_at = now


def _alike(job: SimulatedJob) -> int:
    """Steps of a job, from its next on, that go to the same model with as many rows."""
    return job.phase.walk.alike[job.step]
