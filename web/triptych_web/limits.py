"""How much one user may ask for: pictures under way at once, and pictures a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from triptych.errors import TriptychError

MINUTE_S = 60.0


class TooMany(TriptychError):
    """A user is over a limit; there is room again in `retry_after_s` seconds, None once pictures under way end."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass
class _Bucket:
    pictures: float
    at: float


class Limits:
    """Counts by user; a user is a login's name, or the session where there is no login.

    Args:
        under_way: pictures that one user may have queued or running.
        a_minute: pictures that one user may begin in a minute, on average; as many at once after a pause.
        in_all: pictures under way for all users together.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        *,
        under_way: int = 64,
        a_minute: float = 120,
        in_all: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.under_way, self.a_minute, self.in_all = under_way, a_minute, in_all
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._counts: dict[str, int] = {}

    def take(self, user: str, n: int) -> None:
        """Count `n` pictures as under way.

        Raises:
            TooMany: says which limit, and when there is room; nothing is counted then.
        """
        mine, everybody = self._counts.get(user, 0), sum(self._counts.values())
        if mine + n > self.under_way:
            raise TooMany(f"limit: {mine} pictures are under way and {n} more given; legal: {self.under_way} at once")
        if everybody + n > self.in_all:
            raise TooMany(f"limit: {everybody} pictures are under way for all users; legal: {self.in_all}")
        self._spend(user, n)
        self._counts[user] = mine + n

    def give_back(self, user: str, n: int = 1) -> None:
        """Count `n` pictures as ended."""
        left = self._counts.get(user, 0) - n
        if left > 0:
            self._counts[user] = left
        else:
            self._counts.pop(user, None)

    def _spend(self, user: str, n: int) -> None:
        now, rate = self._clock(), self.a_minute / MINUTE_S
        self._forget(now)
        bucket = self._buckets.setdefault(user, _Bucket(self.a_minute, now))
        bucket.pictures = min(self.a_minute, bucket.pictures + (now - bucket.at) * rate)
        bucket.at = now
        if n > bucket.pictures:
            wait = (n - bucket.pictures) / rate
            words = f"limit: {n} pictures given; legal: {self.a_minute:g} a minute; try again in about {wait:.0f} s"
            raise TooMany(words, wait)
        bucket.pictures -= n

    def _forget(self, now: float) -> None:
        """Drop the buckets that have been left alone for a minute: they are full, as new ones are."""
        if len(self._buckets) > 1000:
            self._buckets = {user: bucket for user, bucket in self._buckets.items() if now - bucket.at < MINUTE_S}
