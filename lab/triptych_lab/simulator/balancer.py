"""Who gets a request, of several servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Protocol


class Loaded(Protocol):
    """A server as a balancer sees it."""

    def outstanding(self, now: float) -> int:
        """Requests sent to it and not answered at `now`, in seconds."""
        ...


Balancer = Callable[[Sequence[Loaded], float], int]


def round_robin() -> Balancer:
    """Each in its turn, as gRPC's client does with `dns:///`."""
    turns = count()
    return lambda servers, _now: next(turns) % len(servers)


def least_requests() -> Balancer:
    """The one with the fewest requests under way; of equals the one that came first after the last."""
    turns = count()

    def choose(servers: Sequence[Loaded], now: float) -> int:
        first = next(turns) % len(servers)
        order = (*range(first, len(servers)), *range(first))
        chosen: int = min(order, key=lambda k: servers[k].outstanding(now))
        return chosen

    return choose


BALANCERS: Mapping[str, Callable[[], Balancer]] = {"round-robin": round_robin, "least-requests": least_requests}
