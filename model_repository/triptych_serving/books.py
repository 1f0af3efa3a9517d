"""The loop's bookkeeping, without models, threads of its own and callers: the engine keeps it, and so does a simulated server."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from .errors import InvalidRequest, Overloaded
from .job import Job, Status
from .policy import Policy


class Batch(NamedTuple):
    """The jobs of one step, and what the step costs. Noted before it runs: it may end a phase, and the next has another model."""

    jobs: Sequence[Job]
    denoiser: str
    rows: int
    cost: int  # in rows × latent pixels
    began: float  # in seconds of the loop's clock


class Books:
    """Keep account of the jobs in the loop, of the work that is left, and of the steps made.

    A job is admitted, enters, is part of batches, and leaves. `admit` and `estimate` are for any thread, all else is for the
    loop's only.
    """

    def __init__(self, policy: Policy, max_queue_seconds: float) -> None:
        self.policy, self.max_queue_seconds = policy, max_queue_seconds
        self.jobs: dict[str, Job] = {}  # that have entered and not left, by id
        self._lock = threading.Lock()
        self._work_left: Counter[str] = Counter()  # of all admitted jobs, by model
        self._steps = 0
        self._with_deadline = 0  # of `jobs`

    @property
    def estimate(self) -> float:
        """Seconds that the work of all admitted jobs takes."""
        with self._lock:
            return self.policy.seconds(self._work_left)

    def admit(self, job: Job) -> None:
        """Count in a job's work. It enters later, between two steps.

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
            InvalidRequest: a living job has its id. Its work is counted out again.
        """
        if job.id in self.jobs:
            self._count_out(job)
            raise InvalidRequest("id", job.id, "an id that no living request has")
        self.jobs[job.id] = job
        self._with_deadline += job.deadline is not None

    def leave(self, job: Job) -> None:
        """Strike out a job and the work that it leaves undone."""
        del self.jobs[job.id]
        self._with_deadline -= job.deadline is not None
        self._count_out(job)

    def late(self, now: float) -> list[Job]:
        """Return the jobs whose deadline has passed."""
        if not self._with_deadline:
            return []
        return [job for job in self.jobs.values() if job.deadline is not None and now >= job.deadline]

    def begin(self, now: float) -> Batch | None:
        """Let the policy pick the next step's batch, and note the start of those whose first step it is."""
        jobs = self.policy.pick(self.jobs.values(), now)
        if not jobs:
            return None
        for job in jobs:
            if job.started is None:
                job.started, job.status = now, Status.RUNNING
                job.steps_waited = self._steps - job.steps_before
        rows = sum(job.rows for job in jobs)
        return Batch(jobs, jobs[0].denoiser, rows, rows * jobs[0].phase.pixels, now)

    def end(self, batch: Batch, seconds: float) -> None:
        """Account for a step that was made and took so long."""
        self.policy.learn(batch.denoiser, batch.rows, batch.cost, seconds)
        for job in batch.jobs:
            job.served += seconds
        with self._lock:
            self._work_left[batch.denoiser] -= batch.cost
        self._steps += 1

    def only_one_batch(self, batch: Batch) -> bool:
        """Return whether every step is this batch again until a job comes or one of these changes its rows or model.

        So it is where nobody is left out of it to take turns with, nobody has a deadline, and the policy would not change it.
        """
        everybody = len(batch.jobs) == len(self.jobs) and len({job.settings.tenant for job in batch.jobs}) == 1
        return everybody and not self._with_deadline and self.policy.lasts(batch.jobs)

    def _count_out(self, job: Job) -> None:
        with self._lock:
            self._work_left.subtract(job.cost)
