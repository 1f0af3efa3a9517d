"""Simulate a farm: requests in the order of their arrival, a balancer, servers that come and go, one virtual clock."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.errors import invalid
from triptych_cluster.scaling import wanted
from triptych_lab.workload import Arrival
from triptych_serving.policy import Policy

from .balancer import BALANCERS, ONE_QUEUE
from .outcome import SLO, Outcome
from .plan import PlannedRequest, Planner
from .server import ServerSpec, SimulatedServer

MAX_SERVERS = 64
# The autoscaler of a cluster looks this often, in seconds.
LOOK_S = 1.0


@dataclass(frozen=True)
class Scaling:
    """The autoscaler of `triptych cluster`.

    Args:
        most: servers; `Farm.servers` are the fewest.
        target_s: seconds of work that may wait for each.
        pause_s: seconds for which fewer must have been enough before one goes.
        start_s: seconds until a new server can be asked.
    """

    most: int
    target_s: float = 20.0
    pause_s: float = 60.0
    start_s: float = 30.0


@dataclass(frozen=True)
class Farm:
    """Equal servers behind one balancer; `policy` makes the policy of each, from its most rows and seconds per cost."""

    spec: ServerSpec
    servers: int = 1
    balancer: str = "round-robin"
    policy: Callable[[int, dict[str, float]], Policy] = Policy
    scaling: Scaling | None = None

    def __post_init__(self) -> None:
        most = self.scaling.most if self.scaling else self.servers
        if not (0 if self.scaling else 1) <= self.servers <= most <= MAX_SERVERS or most < 1:
            raise invalid(
                "servers", f"{self.servers} … {most}" if self.scaling else self.servers, f"1 to {MAX_SERVERS}"
            )
        if self.balancer not in BALANCERS:
            raise invalid("balancer", repr(self.balancer), ", ".join(BALANCERS))

    def start(self, outcome: Outcome) -> list[SimulatedServer]:
        """Make its servers, all idle; they count into `outcome`."""
        return [self.server(outcome, k) for k in range(self.servers)]

    def server(self, outcome: Outcome, number: int) -> SimulatedServer:
        """Make one server."""
        policy = self.policy(self.spec.max_batch_rows, self.spec.cost.per_cost())
        return SimulatedServer(self.spec, policy, outcome, str(number))


class Events:
    """The servers' next events, the earliest first, in a heap; `moved` is told the time of each."""

    def __init__(self, servers: Sequence[SimulatedServer], moved: Callable[[float], None] = lambda _: None) -> None:
        self._servers, self._moved = servers, moved
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
            self._moved(time)
        return last


class Fleet:
    """The servers of a farm over time, and the requests that wait for one of them."""

    def __init__(self, farm: Farm, outcome: Outcome) -> None:
        self._farm, self._outcome = farm, outcome
        self._servers = farm.start(outcome)  # all that there were
        self._events = Events(self._servers, self._fill)
        self._choose = BALANCERS[farm.balancer]()
        self._ready = [*range(farm.servers)]
        self._starting: deque[tuple[float, int]] = deque()  # when each can be asked
        self._life = [[0.0, math.inf] for _ in self._servers]
        self._pending: deque[tuple[str, PlannedRequest, float]] = deque()
        self._looks_at, self._enough_since = (LOOK_S if farm.scaling else math.inf), math.inf
        self.now, self.most = 0.0, farm.servers

    def go(self, until: float) -> None:
        """Let everything up to a time happen."""
        while (following := min(self._looks_at, self._starting[0][0] if self._starting else math.inf)) <= until:
            self._run(following)
            if self._starting and self._starting[0][0] <= following:
                self._ready.append(self._starting.popleft()[1])
            if self._looks_at <= following:
                self._look(following)
                self._looks_at += LOOK_S
            self._fill(following)
        self._run(until)

    def finish(self) -> None:
        """Let everything happen that is under way."""
        while self._pending and self._looks_at < math.inf:
            self.go(self._looks_at)
        self._run(math.inf)

    def _run(self, until: float) -> None:
        self.now = max(self.now, self._events.run(until), until if until < math.inf else 0.0)

    def take(self, id: str, request: PlannedRequest) -> None:
        """Take a request that comes now."""
        self._outcome.arrive(self.now)
        self._pending.append((id, request, self.now))
        self._fill(self.now)

    def _fill(self, now: float) -> None:
        """Send what waits: to whom the balancer chooses; from one queue, to who has room in a batch."""
        while self._pending and self._ready:
            id, request, came = self._pending[0]
            there = [self._servers[k] for k in self._ready]
            if self._farm.balancer == ONE_QUEUE:
                chosen = min(range(len(there)), key=lambda k: there[k].wanted_rows)
                if there[chosen].wanted_rows >= self._farm.spec.max_batch_rows:
                    return
            else:
                chosen = self._choose(there, sum(len(phase.walk.batch_rows) for phase in request.phases), now)
            self._pending.popleft()
            before = there[chosen].next_event
            there[chosen].arrive(id, request, now, came)
            if there[chosen].next_event != before:
                self._events.note(self._ready[chosen])

    def _look(self, now: float) -> None:
        """As Ray Serve does with our policy: up at once, down after a pause in which fewer were always enough."""
        scaling = self._farm.scaling
        if scaling is None:
            return
        there = len(self._ready) + len(self._starting)
        seconds = sum(self._servers[k].seconds for k in self._ready)
        aim = wanted(there, seconds, len(self._pending), scaling.target_s, self._farm.servers, scaling.most)
        self._enough_since = min(self._enough_since, now) if aim < there else math.inf
        if aim > there:
            self._start(aim - there, now, scaling.start_s)
        elif now - self._enough_since >= scaling.pause_s:
            self._stop(there - aim, now)
            self._enough_since = math.inf
        self.most = max(self.most, len(self._ready) + len(self._starting))

    def _start(self, number: int, now: float, start_s: float) -> None:
        for _ in range(number):
            k = len(self._servers)
            self._servers.append(self._farm.server(self._outcome, k))
            self._life.append([now, math.inf])
            self._starting.append((now + start_s, k))

    def _stop(self, number: int, now: float) -> None:
        """Those that have not started yet first, then those with the least work, which they finish."""
        for _ in range(number):
            if self._starting:
                k = self._starting.pop()[1]
            else:
                k = min(self._ready, key=lambda k: self._servers[k].seconds)
                self._ready.remove(k)
            self._life[k][1] = now

    def seconds(self) -> float:
        """Count the seconds for which there were servers, those that start included."""
        return sum(min(end, self.now) - begin for begin, end in self._life)

    @property
    def busy_s(self) -> float:
        """The seconds in which servers made steps."""
        return sum(server.busy_s for server in self._servers)

    @property
    def starts(self) -> int:
        """How many servers were started after the beginning."""
        return len(self._servers) - self._farm.servers


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
    fleet, came = Fleet(farm, outcome), 0.0
    for number, arrival in enumerate(arrivals):
        came += arrival.interval_s
        fleet.go(came)
        fleet.take(str(number), planner(arrival.parameters))
    fleet.finish()
    there = fleet.seconds()
    report = outcome.report(
        seconds=came - warmup_s, utilisation=fleet.busy_s / there if there else 0.0, servers=farm.servers
    )
    mean = {"mean_servers": there / fleet.now if fleet.now else 0.0, "most_servers": fleet.most, "starts": fleet.starts}
    return {**report, **(mean if farm.scaling else {})}
