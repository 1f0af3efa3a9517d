"""The loop. Every turn takes in what arrived, runs one step of one batch, and tells whoever watches.

The life of a request: `submit` admits it, or refuses it because the queue is too long → it waits → each step advances it by one
row of its sampler table, in a batch with whatever other requests fit → after the last row of a phase the next phase begins
(Stable Cascade's Stage B after its Stage C) → after the last phase its latents are sent → how it ended is remembered for a
while, for late watchers.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from triptych_contract.errors import InvalidRequest, invalid

from .books import Batch, Books
from .denoiser import Conditioning, Denoiser, Kind, Made
from .errors import Cancelled, Overloaded, RequestError, StageFailed, Stopping
from .job import Clock, Job, Reply, Status
from .metrics import Metrics
from .policy import Policy
from .steps import Pending, steps_of
from .watch import ARRIVAL_SECONDS, Watchers

# A job with `cancel_on_disconnect` is cancelled once nobody has watched it for so long: a pause between two polls is shorter.
RECONNECT_SECONDS = 5.0
# With no job to step, the loop wakes up this often to answer watchers and to publish the last metrics.
IDLE_SECONDS = 0.1
# Metrics are published at most this often: every publish is an IPC round trip to Triton, which holds up the next step.
PUBLISH_SECONDS = 1.0

log = logging.getLogger(__name__)


class Flight(NamedTuple):
    """A step that was started at `began`, in seconds of the loop's clock."""

    batch: Batch
    pending: Pending
    began: float


class Engine:
    """Run requests in batches that are put together anew for every step.

    One thread does the work. The public methods but `run` and `turn` may be called from any thread: they put a message into the
    loop's inbox. A `reply` is answered from the loop's thread.
    """

    def __init__(
        self,
        denoisers: Mapping[str, Denoiser],
        policy: Policy,
        metrics: Metrics,
        *,
        max_queue_seconds: float,
        clock: Clock = time.monotonic,
        working: Callable[[float], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        # Steps are made within `working`, which is told how many seconds such a step usually takes.
        self.steps, self.metrics, self._working = {n: steps_of(d) for n, d in denoisers.items()}, metrics, working
        self.books = Books(policy, max_queue_seconds)
        self._clock, self._watchers = clock, Watchers(clock)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._early: list[Callable[[], None]] = []
        self._stopping, self._cut_off, self._published = threading.Event(), False, clock()
        self._flight: Flight | None = None
        self._landed = -np.inf  # when the last step was done
        self._thread = threading.Thread(target=self.run, name="denoise-loop", daemon=True)

    # What other threads may ask.

    def start(self) -> None:
        """Start the loop's thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the loop after the step in progress and cancel all jobs; wait up to `timeout_s` seconds for that."""
        self._stopping.set()
        self._inbox.put(lambda: None)
        self._thread.join(timeout_s)

    def cut_off(self) -> None:
        """End every job that is here or still comes, after the step in progress: the server has no more time for them."""
        self._inbox.put(self._end_all)

    def submit(self, job: Job) -> None:
        """Queue a job; its `reply` is answered when it ends.

        Raises:
            Overloaded: the work before it would take longer than `max_queue_seconds`.
        """
        try:
            self.books.admit(job)
        except Overloaded:
            self._inbox.put(partial(self.metrics.add, "rejected_total"))
            raise
        self._inbox.put(partial(self._enter, job))

    def watch(self, id: str, tenant: str, since: int, reply: Reply, *, preview: bool = False) -> None:
        """Answer `reply` at the job's next event after number `since`, with a small picture of it if `preview`."""
        self._inbox.put(partial(self._watchers.add, id, tenant, since, reply, preview))

    def cancel(self, id: str, tenant: str, reply: Reply) -> None:
        """End a job, whose caller gets CANCELLED, and answer `reply` with whether it was still running."""
        self._inbox.put(partial(self._cancel, id, tenant, reply, self._clock()))

    def stats(self, reply: Reply) -> None:
        """Answer `reply` with the current values of all metrics, by name."""
        self._inbox.put(partial(self._report, reply))

    def count(self, metric: str) -> None:
        """Add 1 to a counter of `METRICS`."""
        self._inbox.put(partial(self.metrics.add, metric))

    def between_steps(self, work: Callable[[], dict[str, Any]], reply: Reply) -> None:
        """Do `work` while no step runs, and answer `reply` with what it returns, or with StageFailed."""
        self._inbox.put(partial(self._do, work, reply))

    # The loop.

    def run(self) -> None:
        """Take turns until `stop`. What the thread does."""
        while not self._stopping.is_set():
            try:
                self.turn(wait=True)
            except Exception as error:  # a defect must not leave callers waiting for ever
                log.exception("a turn of the loop failed")
                for job in list(self.books.jobs.values()):
                    self._fail(job, StageFailed(f"denoise: the loop failed ({error})"))
        for job in list(self.books.jobs.values()):
            self._end(job, Status.CANCELLED, Cancelled("cancelled: the server stops"))
        self._watchers.close()

    def turn(self, *, wait: bool) -> None:
        """Take in what arrived, run one step of one batch, tell the watchers. With nothing to do it blocks if `wait`.

        Where a model takes its steps itself, the next step is started before the last one is waited for: what the loop does for
        it costs the device nothing. Whoever comes, or goes, later is a step late; so it is chosen when half of the last is over.
        """
        if wait and self._flight:
            self._linger(self._flight)
        self._receive(wait)
        self._drop_gone()
        before, self._flight = self._flight, None
        if batch := self.books.begin(self._clock(), before.batch.jobs if before else ()):
            self._start(batch)
        if before:
            self._finish(before)
        self._tell()

    def _linger(self, flight: Flight) -> None:
        """Take in what arrives until half of a step should be over."""
        half = self.books.policy.seconds({flight.batch.denoiser: flight.batch.cost}) / 2
        until = max(flight.began, self._landed) + half
        with contextlib.suppress(queue.Empty):
            while (left := until - self._clock()) > 0:
                self._inbox.get(timeout=left)()

    def _receive(self, wait: bool) -> None:
        early, self._early = self._early, []
        if wait and not self.books.jobs and not self._flight:
            to_do = self._watchers or early or self.metrics.unpublished
            with contextlib.suppress(queue.Empty):
                self._inbox.get(timeout=IDLE_SECONDS if to_do else None)()
        while not self._inbox.empty():
            self._inbox.get_nowait()()
        for cancel in early:
            cancel()

    def _drop_gone(self) -> None:
        now = self._clock()
        for job in self.books.late(now):
            limit = job.settings.deadline_ms
            self.metrics.add("expired_total")
            words = f"deadline_ms: {limit} ms passed at step {job.steps_done}"
            self._end(job, Status.CANCELLED, Cancelled(words, deadline_ms=limit))
        for job in list(self.books.jobs.values()):
            if job.reply.is_cancelled() or self._abandoned(job, now):
                self.metrics.add("cancelled_total")
                self._end(job, Status.CANCELLED, Cancelled("cancelled: the client has gone"))

    def _start(self, batch: Batch) -> None:
        for job in batch.jobs:
            if not job.steps_done:
                self.metrics.add("queue_seconds_total", batch.began - job.submitted)
        jobs, steps = self._admitted(batch), self.steps[batch.denoiser]
        if not jobs:
            return
        batch, began = Batch.of(jobs, batch.began), self._clock()
        try:
            with self._usual(batch):
                pending = steps.start(jobs, self._wanted(jobs))
        except Exception as error:
            self._fail_all(batch, error, 1)
            return
        for job in jobs:
            job.go_on()
        flight = Flight(batch, pending, began)
        if steps.ahead:
            self._flight = flight
        else:
            self._finish(flight)

    def _admitted(self, batch: Batch) -> list[Job]:
        """The jobs of a batch that are ready for it; the others fail, each for itself."""
        jobs = []
        for job in batch.jobs:
            try:
                self.steps[batch.denoiser].admit(job)
            except Exception as error:
                self._fail_all(Batch.of([job], batch.began), error, 1)
            else:
                jobs.append(job)
        return jobs

    def _wanted(self, jobs: Sequence[Job]) -> set[Job]:
        """The jobs whose latents are looked at after their next step: at a phase's end, and for previews."""
        pictured = self._watchers.pictured()
        return {job for job in jobs if job.step + 1 == len(job.table) or job.id in pictured}

    def _finish(self, flight: Flight) -> None:
        batch = flight.batch
        try:
            with self._usual(batch) if self.steps[batch.denoiser].ahead else contextlib.nullcontext():
                made = flight.pending.wait()
        except Exception as error:
            self._fail_all(batch, error, 0)
            self.books.end(batch, None)
            return
        began, self._landed = max(flight.began, self._landed), self._clock()
        self._account(batch, self._landed - began)
        for job, one in made.items():
            if not job.status.ended:
                self._see(job, one)

    def _usual(self, batch: Batch) -> contextlib.AbstractContextManager[object]:
        """What watches over a step of this batch, and knows how long that usually takes."""
        return self._working(self.books.policy.seconds({batch.denoiser: batch.cost}))

    def _see(self, job: Job, made: Made) -> None:
        of_this_phase = job.conditionings
        job.see(made)
        if job.conditionings is not of_this_phase:
            self._release(job, of_this_phase)
        if job.finished:
            self._complete(job)

    def _fail_all(self, batch: Batch, error: Exception, ahead: int) -> None:
        """End the jobs of a step that failed; it is so many steps `ahead` of those that they count."""
        log.error("the denoiser failed", exc_info=error)
        for job in batch.jobs:
            if not job.status.ended:
                words = f"denoise: the model failed at step {job.steps_done + ahead} ({error})"
                self._fail(job, StageFailed(words))

    def _account(self, batch: Batch, seconds: float) -> None:
        self.books.end(batch, seconds)
        self.metrics.add("batches_total")
        self.metrics.add("rows_total", batch.rows)
        self.metrics.add("step_seconds_total", seconds)
        self.metrics.set("batch_rows", batch.rows)

    def _tell(self) -> None:
        self._watchers.tell(self.books.jobs, self.books.policy)
        now = self._clock()
        if now - self._published >= PUBLISH_SECONDS:
            self._measure()
            self.metrics.flush()
            self._published = now

    def _report(self, reply: Reply) -> None:
        self._measure()
        reply.send(dict(self.metrics.values))

    def _do(self, work: Callable[[], dict[str, Any]], reply: Reply) -> None:
        try:
            reply.send(work())
        except Exception as error:
            log.exception("what was asked for between two steps failed")
            reply.fail(StageFailed(f"denoise: {error}"))

    def _measure(self) -> None:
        waiting = sum(job.status is Status.QUEUED for job in self.books.jobs.values())
        self.metrics.set("waiting", waiting)
        self.metrics.set("running", len(self.books.jobs) - waiting)
        self.metrics.set("estimate_seconds", self.books.estimate)

    # How a job begins and ends.

    def _enter(self, job: Job) -> None:
        try:
            self.books.enter(job)
        except InvalidRequest as error:
            job.reply.fail(error)
            return
        if self._cut_off:
            self._end_all()
        elif self._watchers.is_cancelled(job):
            self._cancelled(job)

    def _end_all(self) -> None:
        self._cut_off = True
        for job in list(self.books.jobs.values()):
            self.metrics.add("cancelled_total")
            at = f"step {job.steps_done} of {job.num_steps}"
            self._end(job, Status.CANCELLED, Stopping(f"stopped: at {at} the server's time to finish was over"))

    def _complete(self, job: Job) -> None:
        if not np.isfinite(job.latents[0]).all():
            self._fail(job, StageFailed("denoise: the latents are not finite; no image is made of them"))
        else:
            self.metrics.add("completed_total")
            self._end(job, Status.COMPLETED)

    def _fail(self, job: Job, error: StageFailed) -> None:
        self.metrics.add("failed_total")
        self._end(job, Status.FAILED, error)

    def _end(self, job: Job, status: Status, error: RequestError | None = None) -> None:
        """Take a job out of the loop and answer its caller. Every job ends here, so it is answered exactly once."""
        self.books.leave(job)
        job.status = status
        self._watchers.ended(job)
        if error is None:
            job.reply.send(job.timings(self._clock()), job.latents[0])
        else:
            job.reply.fail(error)
        self._release(job, job.conditionings)

    def _release(self, job: Job, conditionings: Mapping[str, Mapping[Kind, Conditioning]]) -> None:
        for denoiser, kinds in conditionings.items():
            self.steps[denoiser].leave(job)
            for conditioning in kinds.values():
                self.steps[denoiser].release(conditioning)

    def _cancel(self, id: str, tenant: str, reply: Reply, asked: float) -> None:
        job = self.books.jobs.get(id)
        if job is not None and job.settings.tenant == tenant:
            self._cancelled(job)
            reply.send({"id": id, "cancelled": True})
        elif job is None and self._watchers.knows(id, tenant):
            reply.send({"id": id, "cancelled": False})
        elif job is None and self._clock() - asked < ARRIVAL_SECONDS:  # its prompt may still be being encoded
            self._early.append(partial(self._cancel, id, tenant, reply, asked))
        else:
            self._watchers.cancel_later(id, tenant)
            reply.fail(invalid("id", id, "the id of a request of this tenant"))

    def _cancelled(self, job: Job) -> None:
        self.metrics.add("cancelled_total")
        self._end(job, Status.CANCELLED, Cancelled("cancelled: on request"))

    def _abandoned(self, job: Job, now: float) -> bool:
        if not job.settings.cancel_on_disconnect:
            return False
        left = self._watchers.left(job.id)
        return left is not None and now - left > RECONNECT_SECONDS
