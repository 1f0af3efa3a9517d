"""What a check finds, and the decorator that makes a check of a function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import ParamSpec

P = ParamSpec("P")


class Level(str, Enum):
    """`OK` works; `NOTE` is worth knowing; `PROBLEM` breaks the CPU path."""

    OK = "OK"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """The result of one check; `advice` is "" if there is nothing to do."""

    check: str
    level: Level
    found: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """Return its fields for a JSON report."""
        return {**asdict(self), "level": self.level.value}


Said = tuple[Level, str] | tuple[Level, str, str]


def finding(name: str) -> Callable[[Callable[P, Said]], Callable[P, Finding]]:
    """Make a check called `name` of a function that returns (level, found) or (level, found, advice).

    A check never raises: what its function raises becomes a note.
    """

    def wrap(look: Callable[P, Said]) -> Callable[P, Finding]:
        @functools.wraps(look)
        def safely(*args: P.args, **kwargs: P.kwargs) -> Finding:
            try:
                return Finding(name, *look(*args, **kwargs))
            except Exception as error:
                return Finding(name, Level.NOTE, f"could not be looked at ({type(error).__name__}: {error})")

        return safely

    return wrap
