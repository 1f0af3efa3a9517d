"""How many rows make a model quick, learnt from its steps."""

from __future__ import annotations

from dataclasses import dataclass

# A size's first steps lay out memory for it; so many are needed before it is compared.
TRUSTED_AFTER = 4
# Weight of a step that was quicker than its size is known to be, and of one that was slower: something was in its way.
QUICKER, SLOWER = 0.5, 0.01
# A batch that does its work at this share of the best pace is large enough: more rows would only make each other wait.
ENOUGH = 0.95
# Of so many batches that are kept smaller one is not, since only batches of a size show what it takes.
LOOK_AGAIN_EVERY = 64


@dataclass
class _Pace:
    """Seconds per unit of cost, and the steps that it was learnt from."""

    seconds: float
    steps: int = 1

    def learn(self, seconds: float) -> None:
        self.seconds += (QUICKER if seconds < self.seconds else SLOWER) * (seconds - self.seconds)
        self.steps += 1


class Paces:
    """What one model's batches take by their rows, these rounded up to a power of two; at most `largest` rows."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._by_size: dict[int, _Pace] = {}
        self._smaller = 0  # batches since the last one that was not kept smaller

    def learn(self, rows: int, seconds: float) -> None:
        """Take in a step's seconds per unit of cost."""
        size = _power_of_two(rows)
        if pace := self._by_size.get(size):
            pace.learn(seconds)
        else:
            self._by_size[size] = _Pace(seconds)

    def enough(self, there: int) -> int:
        """The most rows of the next batch, of so many that are there; now and then all, to see what they take."""
        rows = self.limit(there)
        self._smaller += rows < there
        if self._smaller < LOOK_AGAIN_EVERY:
            return rows
        self._smaller = 0
        return self._largest

    def limit(self, there: int) -> int:
        """As many rows as make the model quick, and no more while fewer are there than fill a batch.

        Where more are there throughput counts, and all sizes are seen again.
        """
        known = {size: pace.seconds for size, pace in self._by_size.items() if pace.steps >= TRUSTED_AFTER}
        if there > self._largest or _power_of_two(self._largest) not in known:
            return self._largest
        quick = min(known.values()) / ENOUGH
        return min(self._largest, min(size for size, pace in known.items() if pace <= quick))


def _power_of_two(rows: int) -> int:
    """The next one that is not smaller."""
    return 1 << (rows - 1).bit_length()
