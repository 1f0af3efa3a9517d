"""Which requests step next, and how long the queue is."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from .job import Job

# A second of waiting outweighs this many seconds of remaining work: short requests overtake long ones, but not for ever.
AGEING = 1.0
# Weight of the newest step in the running estimate of the time per unit of cost.
SMOOTHING = 0.1


class Policy:
    """Tenants in turn, the shortest remaining first with ageing, one model and latent shape a batch."""

    def __init__(self, max_batch_rows: int, seconds_per_cost: Mapping[str, float]) -> None:
        self.max_batch_rows = max_batch_rows
        self.seconds_per_cost = dict(seconds_per_cost)  # by model
        self._turns: dict[str, int] = {}
        self._turn = 0

    def pick(self, jobs: Collection[Job], now: float) -> list[Job]:
        """The next batch: at most `max_batch_rows` rows (one request always fits), all of one model and latent shape."""
        queues = self._queues(jobs, now)
        self._turns = {tenant: self._turns.get(tenant, 0) for tenant in queues}  # of the others nothing is remembered
        batch: list[Job] = []
        rows = 0
        while queues and rows < self.max_batch_rows:
            for tenant, queue in list(queues.items()):
                job = queue.pop()
                if not batch or (job.kind == batch[0].kind and rows + job.rows <= self.max_batch_rows):
                    batch.append(job)
                    rows += job.rows
                    self._turn += 1
                    self._turns[tenant] = self._turn
                if not queue:
                    del queues[tenant]
        return batch

    def order(self, jobs: Collection[Job], now: float) -> list[Job]:
        """Jobs as their turn would come, were nothing else to arrive."""
        queues = self._queues(jobs, now)
        ordered: list[Job] = []
        while queues:
            ordered += [queue.pop() for queue in queues.values()]
            queues = {tenant: queue for tenant, queue in queues.items() if queue}
        return ordered

    def learn(self, denoiser: str, cost: int, seconds: float) -> None:
        """Take the time of a step of this cost into the model's estimate."""
        known = self.seconds_per_cost[denoiser]
        self.seconds_per_cost[denoiser] = known + SMOOTHING * (seconds / cost - known)

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

    def _queues(self, jobs: Collection[Job], now: float) -> dict[str, list[Job]]:
        """Each tenant's jobs, the most urgent last; the tenant served longest ago first."""
        queues: dict[str, list[Job]] = {}
        for job in sorted(jobs, key=lambda job: self._urgency(job, now), reverse=True):
            queues.setdefault(job.settings.tenant, []).append(job)
        return {tenant: queues[tenant] for tenant in sorted(queues, key=lambda tenant: self._turns.get(tenant, 0))}

    def _urgency(self, job: Job, now: float) -> float:
        return self.seconds(job.cost) - AGEING * job.waited(now)
