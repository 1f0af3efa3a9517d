"""One server in virtual time: it keeps the same books as the serving engine, and a cost model says how long a step takes."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from triptych_serving.books import Batch, Books
from triptych_serving.denoiser import Floats, Made
from triptych_serving.errors import Overloaded
from triptych_serving.job import Job
from triptych_serving.phase import Phase
from triptych_serving.policy import Policy

from .cost import CostModel
from .outcome import Ending, Outcome
from .plan import NOTHING, PlannedRequest


class _NoReply:
    """Nobody waits for a simulated answer."""

    def send(self, report: dict[str, Any], latents: Floats | None = None) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def is_cancelled(self) -> bool:
        return False


NO_REPLY = _NoReply()


@dataclass(frozen=True)
class ServerSpec:
    """What a server can do: the times of its device, and the limits that `denoise/config.pbtxt` sets."""

    cost: CostModel
    max_batch_rows: int = 16
    max_queue_seconds: float = 600.0
    _solo: dict[PlannedRequest, float] = field(default_factory=dict, repr=False)

    def solo(self, request: PlannedRequest) -> float:
        """Return the seconds that a request takes alone on an idle server."""
        if request not in self._solo:
            self._solo[request] = self.cost.encode_s + sum(map(self._steps, request.phases)) + self.cost.decode_s
        return self._solo[request]

    def _steps(self, phase: Phase) -> float:
        steps = zip(phase.walk.denoisers, phase.walk.batch_rows, strict=True)
        return sum(self.cost.seconds(denoiser, rows, phase.pixels) for denoiser, rows in steps)


class Stretch(NamedTuple):
    """Steps that are under way, all with the same batch: one, or as many as only an arrival could change."""

    batch: Batch
    first_s: float
    step_s: float  # of each step after the first
    steps: int

    @property
    def last_began(self) -> float:
        """When its last step begins, in virtual seconds."""
        return self.batch.began if self.steps == 1 else self.batch.began + self.first_s + self.step_s * (self.steps - 2)

    @property
    def last_s(self) -> float:
        """Seconds that its last step takes."""
        return self.first_s if self.steps == 1 else self.step_s

    @property
    def ends(self) -> float:
        """When its last step ends."""
        return self.batch.began + (self.first_s + self.step_s * (self.steps - 1))

    def until(self, time: float) -> Stretch:
        """Cut it down to the steps that begin before `time`; the first step always stays."""
        more = math.ceil((time - self.batch.began - self.first_s) / self.step_s)
        return self._replace(steps=max(1, min(self.steps, 1 + more)))


class SimulatedServer:
    """A server whose clock jumps from event to event. All times are in seconds since the start of the simulation."""

    def __init__(self, spec: ServerSpec, policy: Policy, outcome: Outcome, name: str = "") -> None:
        self.spec, self.outcome, self.name = spec, outcome, name
        self.books = Books(policy, spec.max_queue_seconds)
        self.busy_s, self.rows = 0.0, 0
        self.stretch: Stretch | None = None  # what runs now
        self._solo_s: dict[str, float] = {}  # by job id: what the request would take alone
        self._encoding: deque[Job] = deque()  # being encoded, in the order in which they will be at the loop
        self._answers: deque[float] = deque()  # when each request that is being decoded will be answered
        # Encoders and decoder need this much of the device's time that it has not given them yet, as of `_owed_at`.
        self._owed_s, self._owed_at = 0.0, 0.0

    @property
    def seconds(self) -> float:
        """The work in its queue, as it estimates it."""
        return self.books.estimate

    @property
    def row_s(self) -> float:
        """The seconds that a row of a step took it in the mean."""
        return self.busy_s / self.rows if self.rows else 0.0

    @property
    def wanted_rows(self) -> int:
        """The rows that its next step would have if it could have all."""
        return sum(job.rows for job in (*self.books.jobs.values(), *self._encoding))

    def outstanding(self, now: float) -> int:
        """Count the requests that arrived here and are not answered at `now`."""
        self._forget_answered(now)
        return len(self.books.jobs) + len(self._encoding) + len(self._answers)

    def arrive(self, id: str, request: PlannedRequest, now: float, came: float | None = None) -> None:
        """Take a request at `now`, which came at `came` and waited somewhere else. It will be at the loop once it is encoded."""
        self._owe(self.spec.cost.encode_s, now)
        at = now + self.spec.cost.encode_s
        self._encoding.append(
            Job(id, request.settings, request.phases, NO_REPLY, arrived=now if came is None else came, submitted=at)
        )
        self._solo_s[id] = self.spec.solo(request)
        if self.stretch is not None:
            self.stretch = self.stretch.until(at)

    @property
    def next_event(self) -> float:
        """When `advance` has something to do; infinity if nothing is under way."""
        if self.stretch is not None:
            return self.stretch.ends
        return self._encoding[0].submitted if self._encoding else math.inf

    def advance(self) -> None:
        """Go to the next event: end the steps under way, let in what has arrived by then, begin the next step."""
        now = self.next_event
        if self.stretch is None:
            self._receive(now)
        else:
            self._make_all_but_last(self.stretch)
            self._receive(now)  # admitted during the last step, so before that one is accounted for
            self._make_last(self.stretch, now)
        for job in self.books.late(now):
            self._end(job, Ending.EXPIRED, now)
        self._begin(now)

    def _receive(self, now: float) -> None:
        while self._encoding and self._encoding[0].submitted <= now:
            job = self._encoding.popleft()
            try:
                self.books.admit(job)
            except Overloaded:
                self.outcome.end(job, Ending.REJECTED, job.submitted, self._solo_s.pop(job.id))
            else:
                self.books.enter(job)

    def _begin(self, now: float) -> None:
        self._rest(now)
        self.stretch = None
        batch = self.books.begin(now)
        if batch is None:
            return
        step_s = self.spec.cost.seconds(batch.denoiser, batch.rows, batch.jobs[0].phase.pixels)
        steps = min(map(_steps_alike, batch.jobs)) if self.books.only_one_batch(batch) else 1
        stretch = Stretch(batch, step_s + self._owed_s, step_s, steps)
        self._owed_s = 0.0
        self.stretch = stretch.until(self._encoding[0].submitted) if self._encoding else stretch

    def _make_all_but_last(self, stretch: Stretch) -> None:
        """Account for all steps but the last. None of them ends a phase, so the jobs need only count them."""
        made = stretch.steps - 1
        for job in stretch.batch.jobs:
            job.step += made
            job.steps_done += made
        for k in range(made):
            self._account(stretch.batch, stretch.step_s if k else stretch.first_s)

    def _make_last(self, stretch: Stretch, now: float) -> None:
        jobs = stretch.batch.jobs
        for job in jobs:
            job.go_on()
            if not job.ready:
                job.see(Made(job.step, NOTHING, NOTHING))
        self._account(stretch.batch, stretch.last_s)
        for job in jobs:
            if job.finished:
                answered = now + self.spec.cost.decode_s
                self._owe(self.spec.cost.decode_s, now)
                self._forget_answered(now)
                self._answers.append(answered)
                self._end(job, Ending.COMPLETED, answered)

    def _account(self, batch: Batch, seconds: float) -> None:
        self.books.end(batch, seconds)
        self.busy_s += seconds
        self.rows += batch.rows
        self.outcome.step(batch.rows)

    def _end(self, job: Job, ending: Ending, at: float) -> None:
        self.books.leave(job)
        self.outcome.end(job, ending, at, self._solo_s.pop(job.id))

    def _forget_answered(self, now: float) -> None:
        while self._answers and self._answers[0] <= now:
            self._answers.popleft()

    def _owe(self, seconds: float, now: float) -> None:
        """Add work of encoders or decoder on a shared device: idle time pays for it, or the next step takes so much longer."""
        if self.spec.cost.shared:
            self._rest(now)
            self._owed_s += seconds

    def _rest(self, now: float) -> None:
        """Let the idle time since the last call pay for what is owed. The time of a step pays for nothing else."""
        if self.stretch is None:
            self._owed_s = max(0.0, self._owed_s - (now - self._owed_at))
        self._owed_at = now


def _steps_alike(job: Job) -> int:
    """Count how many steps of a job, from the next on, have the same model and as many rows."""
    return job.phase.walk.alike[job.step]
