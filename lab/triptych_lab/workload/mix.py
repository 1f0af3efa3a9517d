"""Make random workloads: what is asked for, in what shares, and when."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from triptych.errors import invalid

from .arrivals import ARRIVALS
from .files import Arrival

SUBJECTS = ("red apple", "rocket", "fox", "penguin", "house", "robot", "tree", "cup of coffee")
STYLES = ("a 3d render of a", "a flat icon of a")
MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class Mix:
    """What requests ask for: each input gets one of its values, all as likely; one that is listed twice is twice as likely."""

    choices: Mapping[str, Sequence[Any]] = field(default_factory=lambda: {"num_inference_steps": (4, 20, 50)})

    def __post_init__(self) -> None:
        for name, values in self.choices.items():
            if not values:
                raise invalid(name, "no value", "at least one to choose from")

    def draw(self, choose: random.Random) -> dict[str, Any]:
        """Draw the inputs of one request."""
        prompt = f"{choose.choice(STYLES)} {choose.choice(SUBJECTS)}"
        chosen = {name: choose.choice(values) for name, values in self.choices.items()}
        return {"prompt": prompt, "seed": choose.randint(0, MAX_SEED), **chosen}


def make(
    mix: Mix, *, rate: float, count: int | None = None, arrivals: str = "poisson", seed: int = 0
) -> Iterator[Arrival]:
    """Make `count` requests (None: endlessly many) at `rate` per second. The same arguments make the same requests.

    Inputs and intervals have random numbers of their own: with another rate the same requests come faster or slower.

    Raises:
        InvalidRequest: `arrivals` is unknown, or `rate` is not above 0.
    """
    if arrivals not in ARRIVALS:
        raise invalid("arrivals", repr(arrivals), ", ".join(ARRIVALS))
    choose = random.Random(f"inputs {seed}")  # noqa: S311 - repeatable, not secret
    intervals = ARRIVALS[arrivals](rate, random.Random(f"intervals {seed}"))  # noqa: S311
    return (Arrival(interval, mix.draw(choose)) for interval in islice(intervals, count))
