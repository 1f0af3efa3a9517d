"""Pictures under way: they belong to a session, not to a page, so that a reload finds them again."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

from triptych.errors import Overloaded, RequestCancelled, ServerUnavailable, TriptychError
from triptych.types import Completed, Event, GeneratedImage, InProgress, Queued
from triptych_web.limits import Limits

from .monitor import Monitor
from .store import Entry, Session, Store, new_token

# How long a picture waits for a server that is gone or full, in all.
PATIENCE_S = 900.0
# A server that goes away under a picture may have died of it: twice is enough.
MAX_BREAKS = 2
KEPT_BATCHES = 8
# After which pause a picture that follows its form is drawn in full; and how often a hand may make it begin anew.
REST_S = 0.5
REDRAWN_A_MINUTE = 1200


class Status(enum.Enum):
    """Where a picture is; the last three are ends."""

    WAITING = "waiting for the server"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in (Status.DONE, Status.STOPPED, Status.FAILED)


class Streams(Protocol):
    """What of `AsyncClient` the manager needs."""

    def stream(self, prompt: str, *, previews: bool = False, **parameters: Any) -> Any: ...


@dataclass
class Picture:
    """One picture under way: what its newest event said. `words` says why it waits or failed.

    `sketched` says that `preview` is a whole picture, of few steps.
    """

    seed: int
    label: str = ""
    status: Status = Status.WAITING
    position: int | None = None
    step: int = 0
    total: int = 0
    stage: str | None = None
    remaining_s: float | None = None
    preview: bytes | None = None
    words: str = ""
    entry: Entry | None = None
    sketched: bool = False
    looks: int = 0

    def show(self, preview: bytes | None) -> None:
        """Take what it looks like by now; `looks` counts that. A sketch stays until the picture is done."""
        if preview and not self.sketched:
            self.preview, self.looks = preview, self.looks + 1


@dataclass
class Batch:
    """Pictures that were asked for at once. Times are seconds of a clock that never goes back."""

    id: str
    form: str
    ensemble: str
    pictures: list[Picture]
    begun_at: float
    columns: int = 0  # of a grid; 0 for none
    live: bool = False  # whether it follows the form: the next change stops it
    ended_at: float | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return all(picture.status.ended for picture in self.pictures)

    @property
    def entries(self) -> list[Entry]:
        """What is done, in the order of the seeds."""
        return [picture.entry for picture in self.pictures if picture.entry]

    def elapsed_s(self, now: float) -> float:
        return (now if self.ended_at is None else self.ended_at) - self.begun_at

    def remaining_s(self) -> float | None:
        """Give the server's estimate for the last of the pictures; None until it has one for each that it works on."""
        open_ones = [picture.remaining_s for picture in self.pictures if not picture.status.ended]
        known = [remaining for remaining in open_ones if remaining is not None]
        return max(known) if known and len(known) == len(open_ones) else None


class Jobs:
    """Starts pictures, follows them, stops them. One event loop's.

    Args:
        client_of: the client that asks an ensemble.
        user_limits: counted by user where there is a login, else by session.
    """

    def __init__(
        self,
        client_of: Callable[[str], Streams],
        store: Store,
        monitor: Monitor,
        user_limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client_of, self._store, self._monitor = client_of, store, monitor
        self._limits, self.clock = user_limits, clock
        # A sketch takes the place of the one before, so no minute's count is kept of them but against a flood.
        self._sketches = Limits(under_way=user_limits.under_way, a_minute=REDRAWN_A_MINUTE, clock=clock)
        self._batches: dict[str, list[Batch]] = {}

    def batches(self, session: Session) -> Sequence[Batch]:
        """List the newest batches of a session, oldest first."""
        return self._batches.get(session.key, ())

    def of_kind(self, session: Session, *, grid: bool) -> Sequence[Batch]:
        """List the newest batches of a session that were asked for as grids, or as pictures."""
        return [batch for batch in self.batches(session) if bool(batch.columns) == grid and not batch.live]

    def live(self, session: Session) -> Batch | None:
        """Find the session's picture that follows its form."""
        return next((batch for batch in reversed(self.batches(session)) if batch.live), None)

    def under_way(self, session: Session) -> bool:
        """Tell whether anything is drawn that was asked for by a button."""
        return any(not batch.ended for batch in self.batches(session) if not batch.live)

    def latest(self, session: Session, *, grid: bool = False) -> Batch | None:
        """Find the newest batch, of the grids or of the others."""
        return next(reversed(self.of_kind(session, grid=grid)), None)

    def start(
        self,
        session: Session,
        form: str,
        ensemble: str,
        requests: Sequence[Mapping[str, Any]],
        *,
        user: str | None = None,
        labels: Sequence[str] = (),
        columns: int = 0,
    ) -> Batch:
        """Begin to draw; each of `requests` names its seed.

        Raises:
            TooMany: over a limit; nothing is begun.
        """
        who = user or session.key
        self._limits.take(who, len(requests))
        names = labels or [""] * len(requests)
        pictures = [Picture(request["seed"], label) for request, label in zip(requests, names, strict=True)]
        batch = Batch(new_token(), form, ensemble, pictures, self.clock(), columns)
        drawn = [
            partial(self._drawn, session, batch, picture, request)
            for picture, request in zip(pictures, requests, strict=True)
        ]
        self._follow_all(session, batch, drawn, lambda: self._limits.give_back(who))
        session.touch()
        return batch

    def redraw(
        self,
        session: Session,
        form: str,
        ensemble: str,
        request: Mapping[str, Any],
        sketch: Mapping[str, Any] | None,
        *,
        user: str | None = None,
    ) -> Batch:
        """Draw the picture that follows a form, and stop the one that followed it before.

        Args:
            request: the picture, drawn and kept after REST_S seconds without another call.
            sketch: the same with few steps, drawn at once; None where `request` has as few itself.

        Raises:
            TooMany: over a limit; nothing is begun, and the one before is stopped all the same.
        """
        who = user or session.key
        self.still(session)
        self._sketches.take(who, 1)
        picture = Picture(request["seed"])
        batch = Batch(new_token(), form, ensemble, [picture], self.clock(), live=True)
        drawn = partial(self._settled, session, batch, picture, request, sketch, who)
        self._follow_all(session, batch, [drawn], lambda: self._sketches.give_back(who))
        return batch

    def still(self, session: Session) -> None:
        """Stop the picture that follows the session's form."""
        if batch := self.live(session):
            _stop(batch, range(1))

    def stop(self, session: Session, batch_id: str | None = None, index: int | None = None) -> int:
        """Stop all of the session's pictures, a batch, or one of its pictures; return how many were stopped.

        The server's slots are free within a step.
        """
        named = [batch for batch in self.batches(session) if batch_id in (None, batch.id)]
        stopped = sum(_stop(batch, range(len(batch.pictures)) if index is None else (index,)) for batch in named)
        session.touch()
        return stopped

    async def close(self) -> None:
        """Stop everything and wait until the server has been told."""
        tasks = [task for batches in self._batches.values() for batch in batches for task in batch.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget_ended(self, alive: Callable[[str], bool]) -> None:
        """Drop the batches of sessions that are gone, and stop what those still draw."""
        for key in [key for key in self._batches if not alive(key)]:
            for batch in self._batches.pop(key):
                for task in batch.tasks:
                    task.cancel()

    def _follow_all(
        self,
        session: Session,
        batch: Batch,
        drawn: Sequence[Callable[[], Awaitable[GeneratedImage]]],
        give_back: Callable[[], None],
    ) -> None:
        for picture, one in zip(batch.pictures, drawn, strict=True):
            task = asyncio.ensure_future(self._follow(session, batch, picture, one))
            task.add_done_callback(lambda _: self._end(session, batch, give_back))
            batch.tasks.append(task)
        mine = self._batches.setdefault(session.key, [])
        # One that follows the form is of no use after the next.
        mine[:] = [old for old in mine if not (old.live and batch.live and all(task.done() for task in old.tasks))]
        mine.append(batch)
        ended = [old for old in mine if old.ended and not old.live]
        for old in ended[: max(0, len(mine) - KEPT_BATCHES)]:
            mine.remove(old)

    def _end(self, session: Session, batch: Batch, give_back: Callable[[], None]) -> None:
        give_back()
        if batch.ended:
            batch.ended_at = self.clock()
        if not batch.live:
            session.touch()

    async def _follow(
        self, session: Session, batch: Batch, picture: Picture, drawn: Callable[[], Awaitable[GeneratedImage]]
    ) -> None:
        try:
            image = await drawn()
            picture.entry = self._store.keep(session, batch.form, batch.ensemble, batch.id, image)
            picture.status = Status.DONE
        except asyncio.CancelledError:
            picture.status = Status.STOPPED
            raise
        except RequestCancelled:
            picture.status = Status.STOPPED
        except (TriptychError, OSError) as error:
            picture.status, picture.words = Status.FAILED, str(error)
        except BaseException as error:
            picture.status, picture.words = Status.FAILED, f"a defect of this page ({type(error).__name__})"
            raise
        finally:
            picture.preview = None
            picture.looks += 1

    async def _settled(
        self,
        session: Session,
        batch: Batch,
        picture: Picture,
        request: Mapping[str, Any],
        sketch: Mapping[str, Any] | None,
        who: str,
    ) -> GeneratedImage:
        """Draw the sketch at once, and the picture when the hand rests."""
        image = await self._drawn(session, batch, picture, sketch or request)
        picture.show(image.data)
        picture.sketched, picture.step = True, 0
        await asyncio.sleep(batch.begun_at + REST_S - self.clock())
        self._limits.take(who, 1)
        try:
            return await self._drawn(session, batch, picture, request) if sketch else image
        finally:
            self._limits.give_back(who)

    async def _drawn(
        self, session: Session, batch: Batch, picture: Picture, request: Mapping[str, Any]
    ) -> GeneratedImage:
        """Draw the picture by a server that may go away and come back meanwhile: the same seed draws the same again."""
        ends, breaks = self.clock() + PATIENCE_S, 0
        while True:
            try:
                return await self._attempt(session, batch, picture, request)
            except ServerUnavailable as error:
                breaks += not error.nothing_accepted
                if breaks > MAX_BREAKS or self.clock() > ends:
                    raise
                await self._wait(session, picture, error, ends)

    async def _attempt(
        self, session: Session, batch: Batch, picture: Picture, request: Mapping[str, Any]
    ) -> GeneratedImage:
        events = self._client_of(batch.ensemble).stream(**request, previews=True, tenant=session.tenant)
        # Closed here, not when it is collected: closing is what frees the server's slot.
        async with contextlib.aclosing(cast("AsyncGenerator[Event, None]", events)) as stream:
            async for event in stream:
                if isinstance(event, Completed):
                    return event.image
                _tell(picture, event)
                if not batch.live:
                    session.touch()
        raise AssertionError("unreachable: a stream ends with its picture or raises")

    async def _wait(self, session: Session, picture: Picture, error: ServerUnavailable, ends: float) -> None:
        picture.status, picture.preview, picture.step = Status.WAITING, None, 0
        picture.position = picture.remaining_s = None
        if isinstance(error, Overloaded):
            self._monitor.watcher.refused(error)
            picture.words = f"the queue is full; tries again in about {error.retry_after_s:.0f} s"
            session.touch()
            # At random, so that all who were refused do not come back at once.
            await asyncio.sleep(error.retry_after_s * random.uniform(1, 1.5))  # noqa: S311 - no secret
            return
        picture.words = "the server is away; drawn as soon as it is back"
        session.touch()
        self._monitor.lost(error)
        if not await self._monitor.usable(max(0.0, ends - self.clock())):
            raise error


def _tell(picture: Picture, event: Queued | InProgress) -> None:
    picture.words = ""
    if isinstance(event, Queued):
        picture.status, picture.position = Status.QUEUED, event.position
        return
    picture.status, picture.position = Status.RUNNING, None
    picture.step, picture.total, picture.stage = event.step, event.total, event.stage
    picture.remaining_s = event.remaining_s
    picture.show(event.preview)


def _stop(batch: Batch, indices: Iterable[int]) -> int:
    """Stop pictures of a batch as far as it has them and they are under way; return how many that were."""
    open_ones = [k for k in indices if 0 <= k < len(batch.pictures) and not batch.pictures[k].status.ended]
    for k in open_ones:
        batch.pictures[k].status, batch.pictures[k].words = Status.STOPPED, ""
        batch.tasks[k].cancel()
    return len(open_ones)
