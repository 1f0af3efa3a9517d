"""How the server is, in the words of the page; from what one look at it found and what the looks before did."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from triptych.errors import Overloaded, ServerUnavailable, TriptychError

# How long a restart is told after it, and from how much waiting work on the queue counts as long; seconds.
RESTART_NEWS_S = 15.0
LONG_QUEUE_S = 60.0


class State(enum.Enum):
    """What a visitor can expect of the server."""

    UNKNOWN = "unknown"
    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    OVERLOADED = "overloaded"
    RESTARTED = "restarted"


@dataclass(frozen=True)
class Health:
    """A state and a sentence for the page; `estimate_s` is the work in the queue, `warm` whether it drew since its start."""

    state: State
    text: str
    estimate_s: float | None = None
    warm: bool | None = None

    @property
    def usable(self) -> bool:
        return self.state in (State.READY, State.OVERLOADED, State.RESTARTED)


class Watcher:
    """Turns looks at the server into a `Health`.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lost = self._seen = False
        self._batches = -1.0
        self._restarted_at = self._refused_until = float("-inf")
        self.health = Health(State.UNKNOWN, "Looking for the server …")

    def found(self, stats: Mapping[str, float]) -> Health:
        """Take the server's answer, its `stats`."""
        batches = float(stats.get("batches_total", 0))
        if self._seen and (self._lost or batches < self._batches):
            self._restarted_at = self._clock()
        self._lost, self._seen, self._batches = False, True, batches
        self.health = self._ready(float(stats.get("estimate_seconds", 0)), batches > 0)
        return self.health

    def missed(self, error: TriptychError) -> Health:
        """Take that the server did not answer."""
        self._lost = self._seen
        absent = isinstance(error, ServerUnavailable) and not error.loading
        if not absent:
            self.health = Health(State.LOADING, "The server is starting: it has not loaded all its models yet.")
        elif self._seen:
            self.health = Health(
                State.ABSENT,
                "The server went away. Pictures under way are drawn again as soon as it is back; nothing needs to be "
                "done here.",
            )
        else:
            self.health = Health(State.ABSENT, "No server answers. This page goes on looking for one.")
        return self.health

    def refused(self, error: Overloaded) -> None:
        """Take that a picture was refused because the queue is full."""
        self._refused_until = self._clock() + error.retry_after_s

    def _ready(self, estimate_s: float, warm: bool) -> Health:
        now = self._clock()
        if now < self._refused_until:
            wait = self._refused_until - now
            text = f"The server is overloaded: about {estimate_s:.0f} s of work waits. Room in about {wait:.0f} s."
            return Health(State.OVERLOADED, text, estimate_s, warm)
        if now - self._restarted_at < RESTART_NEWS_S:
            return Health(State.RESTARTED, "The server was restarted and is back.", estimate_s, warm)
        text = "The server is ready" + ("." if warm else "; it is cold: the first picture takes longer.")
        if estimate_s >= LONG_QUEUE_S:
            text = f"The server is busy: about {estimate_s:.0f} s of work waits."
        return Health(State.READY, text, estimate_s, warm)
