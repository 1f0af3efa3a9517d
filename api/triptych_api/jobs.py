"""Jobs: asked for now, drawn when there is room, fetched when they are done; they outlive this process."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import heapq
import itertools
import json
import logging
import random
import re
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from triptych.async_client import AsyncClient, AsyncJob, event_of
from triptych.errors import Overloaded, RequestCancelled, ServerUnavailable, TriptychError, invalid
from triptych.transport import TRACE
from triptych.types import Completed, Event, GeneratedImage, InProgress
from triptych_contract.errors import shown

from .asked import Asked, asked, body_of
from .errors import Json, Refusal, refusal
from .events import stream
from .images import images_answer
from .keys import Caller
from .metrics import Metrics
from .models import Models
from .record import Record, record_of
from .store import OPEN, Job, Store
from .webhooks import Webhooks, resolved, webhook

LOG = logging.getLogger("triptych_api.jobs")
ID = re.compile("[0-9a-f-]{36}")
# How long a job waits for a server that is away or full, in seconds; and how many it may lose.
PATIENCE_S, MAX_BREAKS = 900.0, 2
HOUSEKEEPING_S = 60.0
STATUS_S = 2.0
# How often a front says that it is there and looks for jobs of a lost one, and looks at one that another front draws.
BEAT_S, ELSEWHERE_S = 2.0, 0.5


@dataclass(frozen=True)
class Bounds:
    """How much is kept.

    Args:
        kept_s, kept_bytes: how long results are kept after their end, and how much of them.
        waiting: jobs that may be unended.
        at_once: that are drawn at a time; the loop's own queue has the rest of the order.
    """

    kept_s: float = 86_400
    kept_bytes: int = 2**30
    waiting: int = 1000
    at_once: int = 64


@dataclass
class Live:
    """A job that this front draws: its requests under way, and whether somebody stopped it, here or at another front."""

    job: Job
    trace: Mapping[str, str] | None = None
    end: Callable[[], None] = lambda: None
    requests: list[AsyncJob] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    stopped: bool = False
    lost: bool = False
    ending: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Jobs:
    """The routes below /v1/jobs, and those who draw."""

    def __init__(
        self, models: Models, make: Callable[[], Store], metrics: Metrics, bounds: Bounds, *, private: bool
    ) -> None:
        self._models, self._metrics, self._bounds = models, metrics, bounds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._store = self._thread.submit(make).result()
        self.webhooks = Webhooks(self._ask, self._store, metrics, self._told, private=private)
        self._live: dict[str, Live] = {}
        self._waiting: list[tuple[int, int, str]] = []
        self._numbers = itertools.count()
        self._more = asyncio.Condition()
        self.routes = [
            Route("/v1/jobs", self.create, methods=["POST"]),
            Route("/v1/jobs/{id}", self.get, methods=["GET"]),
            Route("/v1/jobs/{id}", self.delete, methods=["DELETE"]),
            Route("/v1/jobs/{id}/events", self.events, methods=["GET"]),
        ]

    # What callers ask for.

    async def create(self, request: Request) -> Response:
        """Take a job; the same `Idempotency-Key` with the same body gives the same job."""
        record = record_of(request)
        body = await body_of(request)
        if not request.headers["content-type"].startswith("application/json"):
            raise Refusal(415, "content-type: a form given; legal: application/json", "unsupported_media_type")
        key = request.headers.get("idempotency-key")
        if key is not None and not 1 <= len(key) <= 255:
            raise invalid("Idempotency-Key", f"{len(key)} characters", "1 … 255")
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        hook = webhook(body.pop("webhook", None))
        if hook:
            await resolved(hook["url"], private=self.webhooks.private)
        wanted = await self._wanted(body, record.caller)
        record.model = wanted.model.name
        if "seed" not in wanted.settings:  # drawn here, so that every attempt makes the same pictures
            body["seed"] = secrets.randbits(32)
        job = Job(
            id=str(uuid.uuid4()),
            tenant=record.caller.tenant,
            digest=digest,
            created=time.time(),
            priority=record.caller.priority,
            idempotency=key,
            request=json.dumps(body),
            webhook=json.dumps(hook) if hook else None,
        )
        return await self._taken(job, wanted, record)

    async def _taken(self, job: Job, wanted: Asked, record: Record) -> Response:
        held = sum(len(live.job.request or "") for live in self._live.values()) + len(job.request or "")
        if len(self._live) >= self._bounds.waiting or held > self._bounds.kept_bytes:
            words = f"jobs: {len(self._live)} of {held} bytes wait; legal: {self._bounds.waiting}, {self._bounds.kept_bytes}"
            raise Refusal(429, words, "queue_full", headers={"retry-after": "5"})
        counting = contextlib.ExitStack()
        counting.enter_context(record.begun(wanted))
        try:
            kept: Job = await self._ask(self._store.add, job)
        except BaseException:
            counting.close()
            raise
        if kept.id != job.id:
            counting.close()
            if kept.digest != job.digest:
                words = f"Idempotency-Key: that of job {kept.id}, which asked for something else, given; legal: another"
                raise Refusal(409, words, "idempotency_conflict", param="Idempotency-Key")
            return Json(await self._state(kept), 202)
        await self._enter(Live(job, TRACE.get(), counting.close))
        record.jobs = [job.id]
        return Json(await self._state(job), 202, {"location": f"/v1/jobs/{job.id}"})

    async def get(self, request: Request) -> Response:
        """Tell of a job."""
        return Json(await self._state(await self._own(request)))

    async def delete(self, request: Request) -> Response:
        """Stop a job; one that has ended is forgotten with its pictures."""
        job = await self._own(request)
        live = self._live.get(job.id)
        if live is not None:
            live.stopped = True
            if live.task is not None:
                live.task.cancel()
            else:
                await self._end(live, status="cancelled")
            await live.ended.wait()
        elif await self._ask(
            self._store.end, _over(job, status="cancelled")
        ):  # the front that draws it stops at its next beat
            self.webhooks.wake()
        else:
            await self._ask(self._store.delete, job.id)
            return Json({"id": job.id, "object": "job", "deleted": True})
        return Json(await self._state(await self._own(request)))

    async def events(self, request: Request) -> Response:
        """Tell of a job as it goes: its place, its steps with previews, its end."""
        return await stream(self._events(await self._own(request)))

    async def _events(self, job: Job) -> AsyncIterator[Mapping[str, Any]]:
        live = self._live.get(job.id)
        if live is not None:
            yield {"type": "job.queued", "id": job.id, "position": self._position(live)}
            while not live.ended.is_set():
                live.changed.clear()
                followed = list(live.requests)
                for index, one in enumerate(followed):
                    async for told in _progress(one.iter_events(previews=True)):
                        yield {"id": job.id, "image_index": index, **told}
                await live.changed.wait()
        async for event in self._elsewhere(job):
            yield event
        ended = await self._ask(self._store.get, job.tenant, job.id)
        if ended is not None:
            yield {"type": f"job.{ended.status}", **(await self._state(ended))}

    async def _elsewhere(self, job: Job) -> AsyncIterator[Mapping[str, Any]]:
        """Follow a job that another front draws, by the ids of its requests, until it has ended."""
        followed, now = None, await self._ask(self._store.get, job.tenant, job.id)
        while now is not None and now.status == OPEN:
            if now.sent != followed:
                followed = now.sent
                for index, id in enumerate(_sent(now)):
                    async for told in _progress(_watched(self._models.client, id, job.tenant)):
                        yield {"id": job.id, "image_index": index, **told}
            await asyncio.sleep(ELSEWHERE_S)
            now = await self._ask(self._store.get, job.tenant, job.id)

    async def _own(self, request: Request) -> Job:
        id = request.path_params["id"]
        known = ID.fullmatch(id)  # no database is asked for what no job is called
        found: Job | None = known and await self._ask(self._store.get, record_of(request).caller.tenant, id)
        if found is None:
            raise Refusal(404, f"id: {shown(id)[:60]} given; legal: a job of yours", "job_not_found", param="id")
        return found

    async def _state(self, job: Job) -> dict[str, Any]:
        now: Mapping[str, Any] = {}
        if job.status == OPEN:  # else nothing that still draws it, since another front ended it, is asked
            if live := self._live.get(job.id):
                now = {"queue_position": self._position(live), **(await _at_server(live.requests))}
            else:
                now = await _first_word(self._models.client.watch(id, tenant=job.tenant) for id in _sent(job))
        return {**self._told(job), **now, "result": json.loads(job.result) if job.result else None}

    def _told(self, job: Job) -> dict[str, Any]:
        """Write a job without its pictures, as webhooks have it."""
        expires = None if job.ended is None else int(job.ended + self._bounds.kept_s)
        told = {"id": job.id, "object": "job", "status": job.status, "created": int(job.created)}
        ended = {"ended": job.ended and int(job.ended), "expires": expires}
        return {**told, **ended, "poll_url": f"/v1/jobs/{job.id}", "error": json.loads(job.error or "null")}

    def _position(self, live: Live) -> int | None:
        """Give how many jobs start before one that waits here; None once the server has it."""
        mine = next((entry for entry in self._waiting if entry[2] == live.job.id), None)
        return None if mine is None else sum(entry < mine for entry in self._waiting)

    # Those who draw.

    async def run(self) -> None:
        """Draw until cancelled; what is then under way is drawn by another front, or after the next start."""
        workers = [self._work] * self._bounds.at_once
        await asyncio.gather(*map(_always, [self._hold, self._keep_house, self.webhooks.run, *workers]))

    def close(self) -> None:
        """Leave what has not ended to others and close the store, once `run` has ended."""
        with contextlib.suppress(TriptychError):  # a database that is away
            self._thread.submit(self._store.free).result()
        self._thread.submit(self._store.close).result()
        self._thread.shutdown()

    async def _hold(self) -> None:
        """Keep what is this front's, leave what was ended or taken elsewhere, take up what nobody has."""
        while True:
            mine = [id for id, live in self._live.items() if not live.ending]
            for id in {*mine} - await self._ask(self._store.hold, mine):
                if (live := self._live.get(id)) and not live.ending:
                    self._lose(live)
            for job in await self._ask(self._store.take, self._bounds.waiting - len(self._live)):
                if job.id not in self._live:
                    await self._enter(Live(job))
            await asyncio.sleep(BEAT_S)

    def _lose(self, live: Live) -> None:
        live.stopped = live.lost = True
        if live.task is not None:
            live.task.cancel()
        else:
            self._leave(live)

    async def _enter(self, live: Live) -> None:
        self._live[live.job.id] = live
        heapq.heappush(self._waiting, (-live.job.priority, next(self._numbers), live.job.id))
        async with self._more:
            self._more.notify()

    async def _work(self) -> None:
        while True:
            async with self._more:
                await self._more.wait_for(lambda: bool(self._waiting))
                _, _, id = heapq.heappop(self._waiting)
            live = self._live.get(id)
            if live is None or live.stopped:
                continue
            live.task = asyncio.ensure_future(self._draw(live))
            try:
                await asyncio.wait([live.task])
            finally:
                if not live.task.done():
                    live.task.cancel()
                    await asyncio.wait([live.task])

    async def _draw(self, live: Live) -> None:
        TRACE.set(live.trace)
        try:
            answer = await self._drawn(live)
            await self._end(live, status="completed", result=json.dumps(answer))
        except asyncio.CancelledError:
            if not live.stopped:
                raise
            await self._end(live, status="cancelled")
        except RequestCancelled:
            await self._end(live, status="cancelled")
        except Exception as error:
            if not isinstance(error, TriptychError):
                LOG.exception("a job failed", extra={"facts": {"job": live.job.id}})
            told = refusal(error)
            if isinstance(error, ServerUnavailable) and not error.nothing_accepted:
                told.code = "server_lost"
            await self._end(live, status="failed", error=json.dumps(told.to_json()["error"]))

    async def _drawn(self, live: Live) -> dict[str, Any]:
        """Draw by a server that may go away and come back meanwhile: the same seeds draw the same again."""
        ends, breaks = time.monotonic() + PATIENCE_S, 0
        while True:
            try:
                wanted = await self._wanted(json.loads(live.job.request or "{}"), Caller(tenant=live.job.tenant))
                images = await self._attempt(live, wanted)
                self._metrics.images.labels(wanted.model.name).inc(len(images))
                return images_answer(wanted, images)
            except ServerUnavailable as error:
                breaks += not error.nothing_accepted
                if breaks > MAX_BREAKS or time.monotonic() > ends:
                    raise
                pause = error.retry_after_s if isinstance(error, Overloaded) else 1.0
                # At random, so that all who were refused do not come back at once.
                await asyncio.sleep(pause * random.uniform(1, 1.5))  # noqa: S311 - no secret

    async def _attempt(self, live: Live, wanted: Asked) -> list[GeneratedImage]:
        live.requests = wanted.model.client.submit_many(n=wanted.n, **wanted.settings)
        live.changed.set()
        await self._ask(self._store.sent, live.job.id, [one.id for one in live.requests])
        try:
            with wanted.told(self._models):
                return list(await asyncio.gather(*(one.get() for one in live.requests)))
        except BaseException:
            await asyncio.gather(*(one.cancel() for one in live.requests), return_exceptions=True)
            raise

    async def _end(self, live: Live, **changes: Any) -> None:
        live.ending = True
        ended = _over(live.job, **changes)
        try:
            if not live.lost and await self._ask(self._store.end, ended):
                self._metrics.jobs.labels(ended.status).inc()
        finally:  # a full disk keeps nobody waiting
            self._leave(live)
        self.webhooks.wake()

    def _leave(self, live: Live) -> None:
        self._live.pop(live.job.id, None)
        self._waiting = [entry for entry in self._waiting if entry[2] != live.job.id]
        heapq.heapify(self._waiting)
        live.end()
        live.ended.set()
        live.changed.set()

    async def _wanted(self, body: Mapping[str, Any], caller: Caller) -> Asked:
        wanted = await asked(body, self._models, caller, edit=bool({"image", "images"} & body.keys()))
        for name in ("stream", "partial_images"):
            if wanted.fields.get(name):
                raise invalid(name, "it, with a job,", "nothing: /v1/jobs/ID/events tells of a job")
        return wanted

    async def _keep_house(self) -> None:
        while True:
            await self._ask(self._store.expire, time.time() - self._bounds.kept_s, self._bounds.kept_bytes)
            await asyncio.sleep(HOUSEKEEPING_S)

    async def _ask(self, call: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)


async def _always(work: Callable[[], Awaitable[None]]) -> None:
    """Begin again what a full disk, say, has ended."""
    while True:
        try:
            await work()
        except Exception:
            LOG.exception("goes on")
            await asyncio.sleep(1)


def _over(job: Job, **changes: Any) -> Job:
    now = time.time()
    return replace(job, ended=now, request=None, due=now if job.webhook else None, **changes)


def _sent(job: Job) -> list[str]:
    """Give the ids of the requests that draw a job."""
    return list(json.loads(job.sent or "[]"))


async def _at_server(requests: Sequence[AsyncJob]) -> dict[str, Any]:
    """Give the server's word on the first picture that has not ended, in the words of a job."""
    return await _first_word(one.status() for one in requests if not one.task.done())


async def _first_word(words: Iterable[Awaitable[Mapping[str, Any]]]) -> dict[str, Any]:
    for word in words:
        with contextlib.suppress(TriptychError, asyncio.TimeoutError):
            told = await asyncio.wait_for(word, STATUS_S)
            status = "generating" if told["status"] == "running" else OPEN
            facts = {name: told[name] for name in ("stage", "step", "num_steps", "remaining_s")}
            return {"status": status, "queue_position": told["position"], **facts}
        break
    return {}


async def _watched(client: AsyncClient, id: str, tenant: str) -> AsyncIterator[Event]:
    """Give the events of a request that another front sent."""
    since = -1
    while True:
        state = await client.watch(id, since=since, previews=True, tenant=tenant)
        if (event := event_of(state)) is None:
            return
        if state["seq"] > since:
            yield event
        since = state["seq"]


async def _progress(events: AsyncIterator[Event]) -> AsyncIterator[dict[str, Any]]:
    """Give a picture's events in the words of a job; how it failed is told by its job's end."""
    with contextlib.suppress(TriptychError):
        async for event in events:
            if isinstance(event, InProgress):
                preview = base64.b64encode(event.preview).decode() if event.preview else None
                steps = {"step": event.step, "num_steps": event.total, "stage": event.stage}
                yield {"type": "job.progress", **steps, "remaining_s": event.remaining_s, "preview": preview}
            elif not isinstance(event, Completed):
                yield {"type": "job.queued", "position": event.position}
