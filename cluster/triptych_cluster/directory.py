"""Who is there: every server, door and front says so, twice a second or more, and every door asks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray

NAME = "triptych"
SERVER, DOOR, FRONT = "server", "door", "front"
# Without a word for so long, one is gone.
STALE_S = 3.0

Facts = Mapping[str, Any]


class Members:
    """What each member said last. It keeps nothing: after a loss it is whole again as soon as each has spoken."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], tuple[float, Facts]] = {}

    def say(self, kind: str, name: str, facts: Facts) -> None:
        """Take what one of a kind ("server", "door", "front") says of itself."""
        self._said[kind, name] = time.monotonic(), facts

    def leave(self, kind: str, name: str) -> None:
        """Forget one."""
        self._said.pop((kind, name), None)

    def all(self, kind: str) -> dict[str, Facts]:
        """Give what those of a kind said, by name, with `age_s` since they did."""
        now = time.monotonic()
        self._said = {key: said for key, said in self._said.items() if now - said[0] < STALE_S}
        return {name: {**facts, "age_s": now - at} for (one, name), (at, facts) in self._said.items() if one == kind}


def directory() -> Any:
    """Give the cluster's one directory, an actor that Ray starts again wherever there is room."""
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Members)
    return actor.options(name=NAME, namespace=NAME, get_if_exists=True, lifetime="detached").remote()
