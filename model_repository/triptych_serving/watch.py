"""Who waits for news of which job. A watch is a long poll: one request, answered at the job's next event."""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triptych_contract.errors import invalid

from .errors import Cancelled
from .job import Clock, Job, Reply, Status
from .policy import Policy
from .previews import preview

# After this long an unchanged state is sent as well, so that the client knows that the loop is alive.
HEARTBEAT_SECONDS = 10.0
# A watch may arrive before its job, whose prompt is still being encoded: an unknown id is refused only after this long.
ARRIVAL_SECONDS = 2.0
# How many ended jobs are remembered for late watchers.
REMEMBERED = 4096


@dataclass(eq=False)
class Watch:
    """A long poll that waits for its answer."""

    id: str  # of the job
    tenant: str
    since: int  # the number of the newest event that the client has seen
    reply: Reply
    preview: bool  # whether a picture is wanted
    asked: float  # in seconds of the loop's clock


@dataclass(eq=False)
class News:
    """The newest state of one job; `seq` counts its changes."""

    tenant: str
    state: dict[str, Any]
    seq: int = 0
    left: float | None = None  # when a watch of it was last answered or given up, in seconds of the loop's clock


class Watchers:
    """Hold the watches that wait for an answer, and the newest state of each job. For the loop's thread only."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: list[Watch] = []
        self._news: OrderedDict[str, News] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._cancelled: OrderedDict[tuple[str, str], None] = OrderedDict()  # jobs that may still come

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, id: str, tenant: str, since: int, reply: Reply, preview: bool) -> None:
        """Let `reply` wait for the next event of job `id` after number `since`."""
        self._waiting.append(Watch(id, tenant, since, reply, preview, self._clock()))

    def knows(self, id: str, tenant: str) -> bool:
        """Return whether this tenant has, or had, a job of this id."""
        return id in self._news and self._news[id].tenant == tenant

    def cancel_later(self, id: str, tenant: str) -> None:
        """Remember a cancel whose job has not come."""
        self._cancelled[id, tenant] = None
        while len(self._cancelled) > REMEMBERED:
            self._cancelled.popitem(last=False)

    def is_cancelled(self, job: Job) -> bool:
        """Return whether a job was cancelled before it came."""
        return (job.id, job.settings.tenant) in self._cancelled

    def left(self, id: str) -> float | None:
        """Return since when a job that was watched before has no watch; None if it has one, or never had."""
        news = self._news.get(id)
        return None if news is None or any(w.id == id for w in self._waiting) else news.left

    def pictured(self) -> set[str]:
        """Return the ids of the jobs of which somebody waits for a preview."""
        return {watcher.id for watcher in self._waiting if watcher.preview}

    def tell(self, jobs: Mapping[str, Job], policy: Policy) -> None:
        """Answer every watch for which there is news, or that has waited long enough."""
        if not self._waiting:
            return
        now = self._clock()
        watched = {watcher.id for watcher in self._waiting} & jobs.keys()
        places = self._places(jobs, policy, now) if any(jobs[id].status is Status.QUEUED for id in watched) else {}
        remaining = policy.remaining(jobs.values()) if watched else {}
        for id in watched:
            self._note(jobs[id], places.get(id), remaining[id])
        self._waiting = [w for w in self._waiting if not self._answered(w, jobs.get(w.id), now)]

    def ended(self, job: Job) -> None:
        """Remember how a job ended."""
        self._note(job, None, 0.0 if job.status is Status.COMPLETED else None)
        self._ended[job.id] = None
        while len(self._ended) > REMEMBERED:
            self._news.pop(self._ended.popitem(last=False)[0], None)

    def close(self) -> None:
        """Answer all watches with CANCELLED."""
        for watcher in self._waiting:
            watcher.reply.fail(Cancelled("cancelled: the server stops"))
        self._waiting = []

    def _places(self, jobs: Mapping[str, Job], policy: Policy, now: float) -> dict[str, int]:
        queued = [job for job in jobs.values() if job.status is Status.QUEUED]
        return {job.id: place for place, job in enumerate(policy.order(queued, now))}

    def _note(self, job: Job, position: int | None, remaining_s: float | None) -> None:
        state = {
            "status": job.status.value,
            "position": position,
            "stage": job.denoiser if job.status is Status.RUNNING else None,
            "step": job.steps_done,
            "num_steps": job.num_steps,
        }
        news = self._news.setdefault(job.id, News(job.settings.tenant, {}))
        if any(news.state.get(key) != value for key, value in state.items()):
            news.seq += 1
        news.state = {**state, "remaining_s": None if remaining_s is None else round(remaining_s, 3)}

    def _answered(self, watcher: Watch, job: Job | None, now: float) -> bool:
        news = self._news[watcher.id] if self.knows(watcher.id, watcher.tenant) else None
        if watcher.reply.is_cancelled():
            watcher.reply.fail(Cancelled("cancelled: the watcher has gone"))
        elif news is None:
            if now - watcher.asked < ARRIVAL_SECONDS:
                return False
            watcher.reply.fail(invalid("id", watcher.id, "the id of a request of this tenant"))
        elif news.seq > watcher.since or now - watcher.asked >= HEARTBEAT_SECONDS:
            picture = _picture(job) if watcher.preview else None
            watcher.reply.send({"id": watcher.id, "seq": news.seq, **news.state, "preview": picture})
        else:
            return False
        if news is not None:
            news.left = now
        return True


def _picture(job: Job | None) -> str | None:
    """Draw a small PNG of a job, in base64; None where it has no preview."""
    picture = None if job is None else preview(job)
    return None if picture is None else base64.b64encode(picture).decode()
