"""The loop's bookkeeping, without models, threads of its own and callers: the engine keeps it, and so does a simulated server."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from triptych_contract.errors import invalid

from .errors import Overloaded
from .job import Job, Status
from .policy import Policy


class Batch(NamedTuple):
    """The jobs of one step, and what the step costs.

    Noted before the step runs: afterwards a job may be in its next phase, with another model and other rows.
    """

    jobs: Sequence[Job]
    denoiser: str
    rows: int
    cost: int  # rows × latent pixels
    began: float  # in seconds of the loop's clock

    @classmethod
    def of(cls, jobs: Sequence[Job], now: float) -> Batch:
        rows = sum(job.rows for job in jobs)
        return cls(jobs, jobs[0].denoiser, rows, rows * jobs[0].phase.pixels, now)


class Books:
    """Keep account of the jobs in the loop, the work that is left and the steps that were made.

    A job is admitted, enters, takes part in batches, and leaves. `admit` and `estimate` may be called from any thread, the rest
    from the loop's only. Times are in seconds.
    """

    def __init__(self, policy: Policy, max_queue_seconds: float) -> None:
        self.policy, self.max_queue_seconds = policy, max_queue_seconds
        self.jobs: dict[str, Job] = {}  # by id: those that have entered and not left
        self._lock = threading.Lock()
        self._work_left: Counter[str] = Counter()  # by model: the cost of all admitted jobs, entered or not
        self._steps = 0
        self._with_deadline = 0  # of `jobs`

    @property
    def estimate(self) -> float:
        """How long the work that is left takes, in seconds."""
        with self._lock:
            return self.policy.seconds(self._work_left)

    def admit(self, job: Job) -> None:
        """Add a job's cost to the work that is left. The job enters later, between two steps.

        Raises:
            Overloaded: the work before it would take longer than `max_queue_seconds`.
        """
        with self._lock:
            estimate = self.policy.seconds(self._work_left)
            if estimate > self.max_queue_seconds:
                raise Overloaded(estimate, self.max_queue_seconds)
            self._work_left.update(job.cost)
        job.steps_before = self._steps

    def enter(self, job: Job) -> None:
        """Let an admitted job take part in steps.

        Raises:
            InvalidRequest: another job in the loop has its id. The job's cost is taken off again.
        """
        if job.id in self.jobs:
            self._take_off(job)
            raise invalid("id", job.id, "an id that no living request has")
        self.jobs[job.id] = job
        self._with_deadline += job.deadline is not None

    def leave(self, job: Job) -> None:
        """Remove a job, and take what it leaves undone off the work that is left."""
        del self.jobs[job.id]
        self._with_deadline -= job.deadline is not None
        self._take_off(job)

    def late(self, now: float) -> list[Job]:
        """Return the jobs whose deadline has passed at `now`."""
        if not self._with_deadline:
            return []
        return [job for job in self.jobs.values() if job.deadline is not None and now >= job.deadline]

    def begin(self, now: float, flying: Collection[Job] = ()) -> Batch | None:
        """Pick the jobs of the next step, and mark those that have not run yet as running. None if there are no jobs.

        Those `flying` are in a step that is not done: if that ends a phase they cannot be in another.
        """
        away = {job for job in flying if not job.ready}
        jobs = self.policy.pick(
            [job for job in self.jobs.values() if job not in away] if away else self.jobs.values(), now
        )
        if not jobs:
            return None
        for job in jobs:
            if job.started is None:
                job.started, job.status = now, Status.RUNNING
                job.steps_waited = self._steps - job.steps_before
        return Batch.of(jobs, now)

    def end(self, batch: Batch, seconds: float | None) -> None:
        """Account for a step that took `seconds`, or failed. Call it after the jobs have gone on."""
        if seconds is not None:
            self.policy.learn(batch.denoiser, batch.rows, batch.cost, seconds)
            for job in batch.jobs:
                job.served += seconds
        with self._lock:
            self._work_left[batch.denoiser] -= batch.cost
        self._steps += 1

    def only_one_batch(self, batch: Batch) -> bool:
        """Return whether the next steps are this batch again, until a job arrives or one of these changes its rows or model.

        That is so when all jobs are in the batch and have one tenant, none has a deadline, and the policy would pick it again.
        """
        everybody = len(batch.jobs) == len(self.jobs) and len({job.settings.tenant for job in batch.jobs}) == 1
        return everybody and not self._with_deadline and self.policy.lasts(batch.jobs)

    def _take_off(self, job: Job) -> None:
        with self._lock:
            self._work_left.subtract(job.cost)
