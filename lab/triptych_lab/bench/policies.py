"""What other servers do, as policies of the same loop: peers that differ from it in nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from triptych_serving.job import Job
from triptych_serving.policy import Policy


class OneAtATime(Policy):
    """First come, first served, each to its end before the next begins: a pipeline behind a queue, Triton's tutorial."""

    def pick(self, jobs: Collection[Job], now: float) -> list[Job]:  # noqa: ARG002 - no ageing
        """The request that came first; `jobs` are in the order of their coming."""
        return [next(iter(jobs))] if jobs else []


class SameStep(Policy):
    """Batches of requests that begin together and stay together: a dynamic batcher in front of a whole pipeline.

    The request that came first takes along those that are alike: the same steps, model, latent size and rows all the way.
    """

    def pick(self, jobs: Collection[Job], now: float) -> list[Job]:  # noqa: ARG002 - no ageing
        """The batch under way; else a new one around the request that came first."""
        if running := [job for job in jobs if job.steps_done]:
            return running
        if not jobs:
            return []
        first = next(iter(jobs))
        alike = [job for job in jobs if _course(job) == _course(first)]
        return alike[: max(1, self.max_batch_rows // first.rows)]


# By the name that the command line has for each; `loop` is the product's.
POLICIES: Mapping[str, type[Policy]] = {"loop": Policy, "same-step": SameStep, "one-at-a-time": OneAtATime}


def _course(job: Job) -> tuple[object, ...]:
    """All that decides a job's batches from its start to its end."""
    walk = job.phase.walk
    return job.num_steps, job.shape, walk.denoisers, tuple(walk.batch_rows)
