"""Finished latents, kept for a while: a later model may die over them, and a caller who sends the request again gets them."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from triptych_contract.settings import Settings

from .denoiser import Floats
from .job import Clock
from .receipt import asked_for

SECONDS = 120.0
MOST_BYTES = 64 * 2**20


class Finished(NamedTuple):
    """What the loop answered a request with."""

    report: Mapping[str, Any]
    latents: Floats  # (C, h, w)


class _Entry(NamedTuple):
    asked: Mapping[str, Any]
    until: float
    finished: Finished


class Kept:
    """The newest answers by their requests' ids; for any thread."""

    def __init__(self, most_bytes: int = MOST_BYTES, clock: Clock = time.monotonic) -> None:
        self._most_bytes, self._clock = most_bytes, clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0

    def put(self, id: str, settings: Settings, report: Mapping[str, Any], latents: Floats) -> None:
        """Keep an answer; the oldest go once they are `SECONDS` old, or too many bytes."""
        now, finished = self._clock(), Finished(report, latents)
        with self._lock:
            self._drop(id)
            self._entries[id] = _Entry(asked_for(settings), now + SECONDS, finished)
            self._bytes += latents.nbytes
            for old, entry in list(self._entries.items()):
                if entry.until > now and self._bytes <= self._most_bytes:
                    break
                self._drop(old)

    def get(self, id: str, settings: Settings) -> Finished | None:
        """Give the answer to a request of this id that asked for the same picture, for the same tenant."""
        with self._lock:
            entry = self._entries.get(id)
        same = entry is not None and entry.until > self._clock() and entry.asked == asked_for(settings)
        return entry.finished if entry is not None and same else None

    def _drop(self, id: str) -> None:
        if id in self._entries:
            self._bytes -= self._entries.pop(id).finished.latents.nbytes
