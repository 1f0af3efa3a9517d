"""Choose the server that gets a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Protocol


class Loaded(Protocol):
    """A server as a balancer sees it."""

    def outstanding(self, now: float) -> int:
        """Count the requests that were sent to it and are not answered at `now` (virtual seconds)."""
        ...


Balancer = Callable[[Sequence[Loaded], float], int]


def round_robin() -> Balancer:
    """Make a balancer that takes the servers in turn, as gRPC's `round_robin` does."""
    turns = count()
    return lambda servers, _now: next(turns) % len(servers)


def least_requests() -> Balancer:
    """Make a balancer that takes the server with the fewest requests under way; of equal ones, in turn."""
    turns = count()

    def choose(servers: Sequence[Loaded], now: float) -> int:
        first = next(turns) % len(servers)
        order = (*range(first, len(servers)), *range(first))
        chosen: int = min(order, key=lambda k: servers[k].outstanding(now))
        return chosen

    return choose


BALANCERS: Mapping[str, Callable[[], Balancer]] = {"round-robin": round_robin, "least-requests": least_requests}
