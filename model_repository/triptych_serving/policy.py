"""Which jobs step next, and how long the queue is."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from typing import NamedTuple

from .job import Job
from .paces import Paces

# A second of waiting makes up for this many seconds of remaining work: short jobs overtake long ones, but not for ever.
AGEING = 0.5
# Weight of the newest step in the moving average of seconds per unit of cost.
SMOOTHING = 0.1
# A step counts for no more than so many usual ones: one in which the process stood still for seconds says nothing of the next.
MOST_TIMES = 4


class Policy:
    """Pick batches: tenants take turns; of one tenant the job with the least work left goes first, less for its wait.

    All jobs of a batch are of one kind (`Job.kind`). A unit of cost is one row of one latent pixel.
    """

    def __init__(self, max_batch_rows: int, seconds_per_cost: Mapping[str, float]) -> None:
        self.max_batch_rows = max_batch_rows
        self.seconds_per_cost = dict(seconds_per_cost)  # by model
        self._paces = {name: Paces(max_batch_rows) for name in seconds_per_cost}
        self._turns: dict[str, int] = {}
        self._turn = 0

    def pick(self, jobs: Collection[Job], now: float) -> list[Job]:
        """Return the jobs of the next batch, all of one kind; `now` is in seconds of the loop's clock.

        The batch is filled up to the number of rows beyond which more do not pay (`Paces.enough`). Jobs that have made no step
        yet may go beyond that, up to `max_batch_rows`: their first step is what their users see first. One job always fits.
        """
        there = sum(job.rows for job in jobs)
        queues = self._queues(jobs, now)
        self._turns = {tenant: self._turns.get(tenant, 0) for tenant in queues}  # tenants without jobs are forgotten
        batch: list[Job] = []
        rows, enough = 0, self.max_batch_rows
        while queues and rows < self.max_batch_rows:
            for tenant, queue in list(queues.items()):
                job = heapq.heappop(queue).job
                if not batch:
                    enough = self._paces[job.denoiser].enough(there)
                limit = enough if job.steps_done else self.max_batch_rows
                if not batch or (job.kind == batch[0].kind and rows + job.rows <= limit):
                    batch.append(job)
                    rows += job.rows
                    self._turn += 1
                    self._turns[tenant] = self._turn
                if not queue:
                    del queues[tenant]
        return batch

    def lasts(self, batch: Collection[Job]) -> bool:
        """Return whether this batch, which holds all jobs, would be picked again for the next step."""
        rows = sum(job.rows for job in batch)
        return all(job.steps_done and rows <= self._paces[job.denoiser].limit(rows) for job in batch)

    def order(self, jobs: Collection[Job], now: float) -> list[Job]:
        """Return the jobs in the order in which their turn comes if no other arrives."""
        queues = self._queues(jobs, now)
        ordered: list[Job] = []
        while queues:
            ordered += [heapq.heappop(queue).job for queue in queues.values()]
            queues = {tenant: queue for tenant, queue in queues.items() if queue}
        return ordered

    def learn(self, denoiser: str, rows: int, cost: int, seconds: float) -> None:
        """Update the estimates of a model with a step of `rows` rows and `cost` that took `seconds`."""
        pace = seconds / cost
        usual = self.seconds_per_cost[denoiser]
        self.seconds_per_cost[denoiser] += SMOOTHING * (min(pace, MOST_TIMES * usual) - usual)
        self._paces[denoiser].learn(rows, pace)

    def seconds(self, cost: Mapping[str, int]) -> float:
        """Estimate the seconds that work takes; `cost` is by model."""
        return sum(self.seconds_per_cost[denoiser] * share for denoiser, share in cost.items())

    def remaining(self, jobs: Collection[Job]) -> dict[str, float]:
        """Estimate the seconds until each job is done, by id.

        As if all jobs shared the device equally: beside its own work, a job waits for as much of each other's.
        """
        estimates, before = {}, 0.0
        ordered = sorted((self.seconds(job.cost), job.id) for job in jobs)
        for k, (seconds, id) in enumerate(ordered):
            estimates[id] = before + seconds * (len(ordered) - k)
            before += seconds
        return estimates

    def _queues(self, jobs: Collection[Job], now: float) -> dict[str, list[_Place]]:
        """Return a heap of each tenant's jobs, the most urgent first; the tenant that was served longest ago comes first.

        Heaps, since a batch takes a few jobs out of however many wait.
        """
        queues: dict[str, list[_Place]] = {}
        for k, job in enumerate(jobs):
            queues.setdefault(job.settings.tenant, []).append(_Place(self._urgency(job, now), k, job))
        for queue in queues.values():
            heapq.heapify(queue)
        return {tenant: queues[tenant] for tenant in sorted(queues, key=lambda tenant: self._turns.get(tenant, 0))}

    def _urgency(self, job: Job, now: float) -> float:
        """Return the job's seconds of work left, less its weighted wait; the smallest is the most urgent."""
        return self.seconds(job.cost) - AGEING * job.waited(now)


class _Place(NamedTuple):
    """A job in its tenant's heap. Of equally urgent jobs the one that came first is ahead."""

    urgency: float
    came: int
    job: Job
