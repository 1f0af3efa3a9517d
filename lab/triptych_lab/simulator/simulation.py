"""Simulate a farm: requests in the order of their arrival, a balancer, servers, one virtual clock."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.errors import invalid
from triptych_lab.workload import Arrival
from triptych_serving.policy import Policy

from .balancer import BALANCERS, Balancer
from .outcome import SLO, Outcome
from .plan import Planner
from .server import ServerSpec, SimulatedServer

MAX_SERVERS = 64


@dataclass(frozen=True)
class Farm:
    """Equal servers behind one balancer; `policy` makes the policy of each, from its most rows and seconds per cost."""

    spec: ServerSpec
    servers: int = 1
    balancer: str = "round-robin"
    policy: Callable[[int, dict[str, float]], Policy] = Policy

    def __post_init__(self) -> None:
        if not 1 <= self.servers <= MAX_SERVERS:
            raise invalid("servers", self.servers, f"1 to {MAX_SERVERS}")
        if self.balancer not in BALANCERS:
            raise invalid("balancer", repr(self.balancer), ", ".join(BALANCERS))

    def start(self, outcome: Outcome) -> list[SimulatedServer]:
        """Make its servers, all idle; they count into `outcome`."""
        return [
            SimulatedServer(self.spec, self.policy(self.spec.max_batch_rows, self.spec.cost.per_cost()), outcome)
            for _ in range(self.servers)
        ]


class Events:
    """The servers' next events, the earliest first, in a heap."""

    def __init__(self, servers: Sequence[SimulatedServer]) -> None:
        self._servers = servers
        self._heap: list[tuple[float, int]] = []

    def note(self, k: int) -> None:
        """Note that server `k` has a next event, or an earlier one than noted before."""
        heapq.heappush(self._heap, (self._servers[k].next_event, k))

    def run(self, until: float) -> float:
        """Let all events up to the time `until` happen; return the time of the last one, -inf if there was none."""
        heap, servers, last = self._heap, self._servers, -math.inf
        while heap and heap[0][0] <= until:
            time, k = heapq.heappop(heap)
            if time != servers[k].next_event:  # out of date: an earlier event was noted since
                continue
            last = time
            servers[k].advance()
            if servers[k].next_event < math.inf:
                self.note(k)
        return last


def simulate(
    arrivals: Iterable[Arrival], planner: Planner, farm: Farm, *, slo: float = SLO, warmup_s: float = 0.0
) -> dict[str, Any]:
    """Serve all `arrivals` and report.

    Args:
        slo: a request is good if it is answered within this many times its solo time.
        warmup_s: requests of the first so many seconds are served but not counted.

    Returns:
        The report of `Outcome.report`, in seconds and requests per second.

    Raises:
        InvalidRequest: the build would refuse a request, or a model that it needs was not measured.
    """
    outcome = Outcome(slo=slo, warmup_s=warmup_s)
    servers = farm.start(outcome)
    came, ended = _serve(arrivals, planner, servers, BALANCERS[farm.balancer](), outcome)
    busy_s = sum(server.busy_s for server in servers)
    utilisation = busy_s / (farm.servers * ended) if ended > 0 else 0.0
    return outcome.report(seconds=came - warmup_s, utilisation=utilisation, servers=farm.servers)


def _serve(
    arrivals: Iterable[Arrival],
    planner: Planner,
    servers: Sequence[SimulatedServer],
    choose: Balancer,
    outcome: Outcome,
) -> tuple[float, float]:
    """Run all events; return when the last request arrived and when the last event was, in virtual seconds."""
    events, now = Events(servers), 0.0
    for number, arrival in enumerate(arrivals):
        now += arrival.interval_s
        events.run(now)
        request = planner(arrival.parameters)
        k = choose(servers, sum(len(phase.walk.batch_rows) for phase in request.phases), now)
        outcome.arrive(now)
        before = servers[k].next_event
        servers[k].arrive(str(number), request, now)
        if servers[k].next_event != before:
            events.note(k)
    return now, max(now, events.run(math.inf))
