"""How much work waits where: as each server published it, less what it has done since, and what was sent since."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from .asked import Asked

# A published figure may have been taken this long before it is read here: what was sent in this time counts beside it.
LAG_S = 0.5
# A server that has a request's kin is taken unless another has less work by more than this, or by this part.
WORTH_S, WORTH = 0.25, 0.1
# Steps of a request that leaves them to the model, and rows of one that is guided.
STEPS, ROWS = 30, 2


@dataclass
class Server:
    """What is known of one server.

    Args:
        address: of its gRPC.
        seconds: of work that it estimated to have waiting, at `told` on the book's clock.
        row_s: seconds that a row of a step took it in the mean.
    """

    address: str
    seconds: float = 0.0
    row_s: float = 0.0
    told: float = 0.0
    sent: list[tuple[float, float]] = field(default_factory=list)

    def waiting(self, now: float) -> float:
        """Give the seconds of work that it has now."""
        self.sent = [(at, seconds) for at, seconds in self.sent if at > self.told - LAG_S]
        return max(0.0, self.seconds - (now - self.told)) + sum(seconds for _, seconds in self.sent)


class Book:
    """The servers that may be asked, and which of them should be.

    Args:
        clock: seconds, as `time.monotonic`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.servers: dict[str, Server] = {}
        self._clock = clock
        self._suspects: dict[str, float] = {}

    def tell(self, told: Mapping[str, Mapping[str, float | str]]) -> None:
        """Take what the servers published, by name: `address`, `seconds`, `row_s`, and `age_s` of the figures."""
        now = self._clock()
        for name, facts in told.items():
            server = self.servers.setdefault(name, Server(str(facts["address"])))
            at = now - float(facts["age_s"])
            if at > server.told:
                server.seconds, server.row_s, server.told = float(facts["seconds"]), float(facts["row_s"]), at
            if at > self._suspects.get(name, at):
                del self._suspects[name]  # it has spoken since
        for name in self.servers.keys() - told.keys():
            del self.servers[name]

    def suspect(self, name: str) -> None:
        """Ask a server no more until it has published again."""
        self._suspects[name] = self._clock()

    def choose(self, asked: Asked, but: Iterable[str] = ()) -> str | None:
        """Name the server with the least work, or one with nearly as little that has the request's kin; None for none."""
        now = self._clock()
        legal = self.servers.keys() - self._suspects.keys() - set(but)
        if not legal:
            return None
        waiting = {name: self.servers[name].waiting(now) for name in legal}
        least = min(waiting.values())
        near = [name for name in legal if waiting[name] <= least + max(WORTH_S, WORTH * least)] if asked.kin else []
        # Rendezvous hashing: every door prefers the same one without a word between them, and few move when servers come or go.
        return (
            max(near, key=lambda name: _affinity(name, asked.kin))
            if near
            else min(legal, key=lambda name: (waiting[name], name))
        )

    def sent(self, name: str, asked: Asked) -> None:
        """Count a request that is on its way to a server."""
        if server := self.servers.get(name):
            seconds = (asked.steps if asked.steps is not None else STEPS) * ROWS * self._row_s(server)
            server.sent.append((self._clock(), seconds))

    def _row_s(self, server: Server) -> float:
        """A new server's is not known: it is thought to be as quick as the others, or it would get all that comes at once."""
        others = [one.row_s for one in self.servers.values() if one.row_s]
        return server.row_s or (sum(others) / len(others) if others else 0.0)


def _affinity(name: str, kin: bytes) -> bytes:
    return hashlib.blake2b(kin + name.encode(), digest_size=8).digest()
