"""How many rows a batch should have: each model's pace (seconds per unit of cost) at each batch size, learnt from its steps."""

from __future__ import annotations

from dataclasses import dataclass

# The first steps of a size are slow, since memory is laid out for it. It is compared with others after this many steps.
TRUSTED_AFTER = 4
# Weight of a step in its size's average, if it was quicker than that and if it was slower. A slower step counts for little:
# most likely something else had the processor.
QUICKER, SLOWER = 0.5, 0.01
# A batch is large enough when it works at this share of the best pace: more rows would only make each other wait.
ENOUGH = 0.95
# Every 64th capped batch runs uncapped, so that larger sizes are measured again.
UNCAPPED_EVERY = 64


@dataclass
class _Pace:
    """Seconds per unit of cost at one batch size, and the number of steps that it was learnt from."""

    seconds: float
    steps: int = 1

    def learn(self, seconds: float) -> None:
        self.seconds += (QUICKER if seconds < self.seconds else SLOWER) * (seconds - self.seconds)
        self.steps += 1


class Paces:
    """Learn the paces of one model. Batch sizes are rounded up to a power of two; `largest` is the most rows of a batch."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._by_size: dict[int, _Pace] = {}
        self._capped = 0  # batches that were capped since the last one that ran uncapped

    def learn(self, rows: int, seconds: float) -> None:
        """Update the pace of batches of `rows` rows with a step's seconds per unit of cost."""
        size = _power_of_two(rows)
        if pace := self._by_size.get(size):
            pace.learn(seconds)
        else:
            self._by_size[size] = _Pace(seconds)

    def enough(self, there: int) -> int:
        """Return the most rows that the next batch may have when `there` rows wait; every 64th capped batch is not capped."""
        rows = self.limit(there)
        self._capped += rows < there
        if self._capped < UNCAPPED_EVERY:
            return rows
        self._capped = 0
        return self._largest

    def limit(self, there: int) -> int:
        """Return the smallest number of rows whose pace is close to the best, when `there` rows wait.

        It is `largest` if more rows wait than fill a batch, since throughput counts then, or until that size has been measured.
        """
        known = {size: pace.seconds for size, pace in self._by_size.items() if pace.steps >= TRUSTED_AFTER}
        if there > self._largest or _power_of_two(self._largest) not in known:
            return self._largest
        quick = min(known.values()) / ENOUGH
        return min(self._largest, min(size for size, pace in known.items() if pace <= quick))


def _power_of_two(rows: int) -> int:
    """Return the smallest power of two that is at least `rows`."""
    return 1 << (rows - 1).bit_length()
