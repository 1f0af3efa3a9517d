"""How long a call waits for a server that is away or full, and when it asks again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from .errors import Overloaded, ServerUnavailable

# Seconds between looks for a server that is away, the last again and again; each is taken half to whole at random.
BACK_OFF_S = (0.25, 0.5, 1.0)
# A full queue says when there is room. It is asked again this often, so much later at random, in seconds.
FULL_S = (0.5, 2.0)
# Processes that one request may find dead, or kill.
MAX_LOST = 5
# Longer than this is for the caller to wait, in seconds.
MAX_WAIT_S = 30.0


@dataclass(frozen=True)
class Patience:
    """How long a call waits for a server that cannot have begun it, where the call has no timeout to tell.

    Args:
        absent_s: seconds for one that nobody answers for.
        loading_s: seconds for one that has not loaded its models.
        full_s: seconds for one whose queue is full.
        tell: told why there is a wait, and how many seconds it may take in all.
    """

    absent_s: float = 10.0
    loading_s: float = 10.0
    full_s: float = MAX_WAIT_S
    tell: Callable[[ServerUnavailable, float], None] = lambda _error, _seconds: None


class Waits:
    """The waits of one call.

    Args:
        ends: when its timeout passes, on the clock of `time.monotonic`; None where it has none.
    """

    def __init__(self, patience: Patience, ends: float | None) -> None:
        self._patience, self._ends = patience, ends
        self._since: dict[bool, float] = {}
        self._looks = self._refusals = self._losses = 0

    async def after(self, error: ServerUnavailable) -> None:
        """Wait until the call may be sent again.

        Raises:
            ServerUnavailable: the same, where it may not: a server may have begun it, models die of it, or there is no time left.
        """
        self._losses += error.lost
        if not error.nothing_accepted or self._losses > MAX_LOST:
            raise error
        pause, limit = self._full(error) if isinstance(error, Overloaded) else self._away(error)
        left = limit - time.monotonic()
        if pause >= left:
            raise error
        self._patience.tell(error, left)
        await asyncio.sleep(pause)
        if time.monotonic() >= limit:  # it was a long pause
            raise error

    def _full(self, error: Overloaded) -> tuple[float, float]:
        """Seconds to wait, at random so that callers do not come back all at once, and when patience ends."""
        if self._refusals == len(FULL_S):
            raise error
        pause = error.retry_after_s + FULL_S[self._refusals] * random.uniform(0, 1)  # noqa: S311 - no secret
        self._refusals += 1
        longest = time.monotonic() + min(self._patience.full_s, MAX_WAIT_S)
        return pause, longest if self._ends is None else min(self._ends, longest)

    def _away(self, error: ServerUnavailable) -> tuple[float, float]:
        pause = BACK_OFF_S[min(self._looks, len(BACK_OFF_S) - 1)] * random.uniform(0.5, 1)  # noqa: S311 - no secret
        self._looks += 1
        since = self._since.setdefault(error.loading, time.monotonic())
        seconds = self._patience.loading_s if error.loading else self._patience.absent_s
        return pause, since + seconds if self._ends is None else self._ends
