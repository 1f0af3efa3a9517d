"""Which requests step next, and how long the queue is."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from typing import NamedTuple

from .job import Job
from .paces import Paces

# A second of waiting outweighs this many seconds of remaining work: short requests overtake long ones, but not for ever.
AGEING = 0.5
# Weight of the newest step in the running estimate of the time per unit of cost.
SMOOTHING = 0.1


class Policy:
    """Tenants in turn, the shortest remaining first with ageing, one kind of job (`Job.kind`) a batch."""

    def __init__(self, max_batch_rows: int, seconds_per_cost: Mapping[str, float]) -> None:
        self.max_batch_rows = max_batch_rows
        self.seconds_per_cost = dict(seconds_per_cost)  # by model
        self._paces = {name: Paces(max_batch_rows) for name in seconds_per_cost}
        self._turns: dict[str, int] = {}
        self._turn = 0

    def pick(self, jobs: Collection[Job], now: float) -> list[Job]:
        """The next batch, all of one kind: rows for as long as they pay (one request always fits), and whoever has just come.

        New jobs make their first step at once where there is room, though that pays less: somebody watches for it.
        """
        there = sum(job.rows for job in jobs)
        queues = self._queues(jobs, now)
        self._turns = {tenant: self._turns.get(tenant, 0) for tenant in queues}  # of the others nothing is remembered
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
        """Whether all that is there is in the batch because that pays, and not for one step."""
        rows = sum(job.rows for job in batch)
        return all(job.steps_done and rows <= self._paces[job.denoiser].limit(rows) for job in batch)

    def order(self, jobs: Collection[Job], now: float) -> list[Job]:
        """Jobs as their turn would come, were nothing else to arrive."""
        queues = self._queues(jobs, now)
        ordered: list[Job] = []
        while queues:
            ordered += [heapq.heappop(queue).job for queue in queues.values()]
            queues = {tenant: queue for tenant, queue in queues.items() if queue}
        return ordered

    def learn(self, denoiser: str, rows: int, cost: int, seconds: float) -> None:
        """Take the time of a step of so many rows and this cost into the model's estimates."""
        pace = seconds / cost
        self.seconds_per_cost[denoiser] += SMOOTHING * (pace - self.seconds_per_cost[denoiser])
        self._paces[denoiser].learn(rows, pace)

    def seconds(self, cost: Mapping[str, int]) -> float:
        """The time that work takes, by model, were nothing else to do."""
        return sum(self.seconds_per_cost[denoiser] * share for denoiser, share in cost.items())

    def remaining(self, jobs: Collection[Job]) -> dict[str, float]:
        """Estimated seconds until each job is done, by id: its own work and, until then, as much for each of the others."""
        estimates, before = {}, 0.0
        ordered = sorted((self.seconds(job.cost), job.id) for job in jobs)
        for k, (seconds, id) in enumerate(ordered):
            estimates[id] = before + seconds * (len(ordered) - k)
            before += seconds
        return estimates

    def _queues(self, jobs: Collection[Job], now: float) -> dict[str, list[_Place]]:
        """A heap of each tenant's jobs, the most urgent first; the tenant served longest ago first.

        Heaps, since a batch takes a few jobs of however many wait.
        """
        queues: dict[str, list[_Place]] = {}
        for k, job in enumerate(jobs):
            queues.setdefault(job.settings.tenant, []).append(_Place(self._urgency(job, now), k, job))
        for queue in queues.values():
            heapq.heapify(queue)
        return {tenant: queues[tenant] for tenant in sorted(queues, key=lambda tenant: self._turns.get(tenant, 0))}

    def _urgency(self, job: Job, now: float) -> float:
        """Seconds of work left, less the wait; the least is the most urgent."""
        return self.seconds(job.cost) - AGEING * job.waited(now)


class _Place(NamedTuple):
    """A job in its tenant's heap; of equally urgent ones that which came first is ahead."""

    urgency: float
    came: int
    job: Job
