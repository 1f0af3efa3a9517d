"""How other servers batch, as policies of the same loop: peers that differ from it in nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from triptych_serving.job import Job
from triptych_serving.policy import Policy


class OneAtATime(Policy):
    """Serve one request to its end before the next begins, first come, first served: as a pipeline behind a queue does."""

    def pick(self, jobs: Collection[Job], now: float) -> list[Job]:  # noqa: ARG002 - no ageing
        """Return the job that came first; `jobs` are in the order of their arrival."""
        return [next(iter(jobs))] if jobs else []


class SameStep(Policy):
    """Batch requests that begin together and stay together: as a dynamic batcher in front of a whole pipeline does.

    The request that came first takes along those with the same steps, models, latent size and rows from start to end.
    """

    def pick(self, jobs: Collection[Job], now: float) -> list[Job]:  # noqa: ARG002 - no ageing
        """Return the batch under way, or else a new one around the job that came first."""
        if running := [job for job in jobs if job.steps_done]:
            return running
        if not jobs:
            return []
        first = next(iter(jobs))
        alike = [job for job in jobs if _course(job) == _course(first)]
        return alike[: max(1, self.max_batch_rows // first.rows)]


# By their names on the command line; `loop` is the policy that serves.
POLICIES: Mapping[str, type[Policy]] = {"loop": Policy, "same-step": SameStep, "one-at-a-time": OneAtATime}


def _course(job: Job) -> tuple[object, ...]:
    """Return what two jobs must have in common to share all their steps."""
    walk = job.phase.walk
    return job.num_steps, job.shape, walk.denoisers, tuple(walk.batch_rows)
