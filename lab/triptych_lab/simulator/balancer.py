"""Choose the server that gets a request."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, Protocol

from triptych_cluster.asked import Asked
from triptych_cluster.book import Book

# A server of a cluster publishes its work this often, in seconds.
TELL_S = 0.25


class Loaded(Protocol):
    """A server as a balancer sees it."""

    @property
    def name(self) -> str:
        """What no other server is called, before or after."""
        ...

    @property
    def seconds(self) -> float:
        """The work in its queue, as it estimates it."""
        ...

    @property
    def row_s(self) -> float:
        """The seconds that a row of a step took it in the mean."""
        ...

    def outstanding(self, now: float) -> int:
        """Count the requests that were sent to it and are not answered at `now` (virtual seconds)."""
        ...


# Servers, the steps of the request, and the time → the server's number.
Balancer = Callable[[Sequence[Loaded], int, float], int]


def round_robin() -> Balancer:
    """Make a balancer that takes the servers in turn, as gRPC's `round_robin` does."""
    turns = count()
    return lambda servers, _steps, _now: next(turns) % len(servers)


def least_requests() -> Balancer:
    """Make a balancer that takes the server with the fewest requests under way; of equal ones, in turn."""
    turns = count()

    def choose(servers: Sequence[Loaded], _steps: int, now: float) -> int:
        first = next(turns) % len(servers)
        order = (*range(first, len(servers)), *range(first))
        chosen: int = min(order, key=lambda k: servers[k].outstanding(now))
        return chosen

    return choose


def two_choices() -> Balancer:
    """Make a balancer that draws two servers by lot and takes the one with fewer requests under way, as Ray Serve does."""
    lot = random.Random(0)  # noqa: S311 - repeatable, not secret

    def choose(servers: Sequence[Loaded], _steps: int, now: float) -> int:
        drawn = lot.sample(range(len(servers)), min(2, len(servers)))
        return min(drawn, key=lambda k: servers[k].outstanding(now))

    return choose


def least_seconds() -> Balancer:
    """Make the balancer of `triptych cluster`: a door's own book, to which servers publish their work four times a second."""
    now = told = float("-inf")
    known: dict[str, Mapping[str, Any]] = {}
    book = Book(lambda: now)

    def choose(servers: Sequence[Loaded], steps: int, at: float) -> int:
        nonlocal now, told, known
        now = at
        if now >= told + TELL_S:
            told = now - now % TELL_S
            known = {server.name: _facts(server, now - told) for server in servers}
            book.tell(known)
        here = [server.name for server in servers]
        # One that came since is told of with the next words, as doors are; one that went is asked no more.
        chosen = book.choose(Asked(steps=steps), but=known.keys() - {*here})
        if chosen is None:
            return 0
        book.sent(chosen, Asked(steps=steps))
        return here.index(chosen)

    return choose


def _facts(server: Loaded, age_s: float) -> Mapping[str, Any]:
    return {"address": "", "seconds": server.seconds, "row_s": server.row_s, "age_s": age_s}


def one_queue() -> Balancer:
    """Make what no balancer can be: requests wait in one queue, and each server takes one as soon as a batch of it has room."""
    return lambda _servers, _steps, _now: 0  # the fleet gives them out


ONE_QUEUE = "one-queue"
BALANCERS: Mapping[str, Callable[[], Balancer]] = {
    "round-robin": round_robin,
    "two-choices": two_choices,
    "least-requests": least_requests,
    "least-seconds": least_seconds,
    ONE_QUEUE: one_queue,
}
