"""Every request that was sent, and how it ended."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from triptych import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
    ServerUnavailable,
)

# A client waits so long for the server's own word on a deadline, and a second more may pass.
LATE_S = 3.0
# Errors that say what happened and that are nobody's fault here; anything else is a defect.
NAMED = (DeadlineExceeded, InvalidRequest, Overloaded, RequestCancelled, ServerUnavailable)


@dataclass(eq=False)
class Entry:
    """A request of one kind."""

    kind: str
    due: float  # when it must have ended, on the monotonic clock
    outcomes: list[bytes | BaseException] = field(default_factory=list)
    late: bool = False


@dataclass
class Ledger:
    """What is owed and what came.

    Args:
        alone: the file of each kind of request, as it is drawn when nothing else happens.
    """

    alone: Mapping[str, bytes]
    entries: list[Entry] = field(default_factory=list)

    def sent(self, kind: str, timeout_s: float | None = None) -> Entry:
        """Note that a request goes out."""
        due = time.monotonic() + timeout_s + LATE_S if timeout_s else float("inf")
        self.entries.append(Entry(kind, due))
        return self.entries[-1]

    def ended(self, entry: Entry, outcome: bytes | BaseException) -> None:
        """Note an answer: a file or an error."""
        entry.outcomes.append(outcome)
        entry.late = entry.late or time.monotonic() > entry.due

    def figures(self) -> dict[str, int]:
        """Count the requests, by how they ended; all from `lost` on must be 0."""
        ends = [outcome for entry in self.entries for outcome in entry.outcomes]
        images = [(entry.kind, end) for entry in self.entries for end in entry.outcomes if isinstance(end, bytes)]
        return {
            "sent": len(self.entries),
            "images": len(images),
            "named errors": sum(isinstance(end, NAMED) for end in ends),
            "lost": sum(not entry.outcomes for entry in self.entries),
            "doubled": sum(len(entry.outcomes) > 1 for entry in self.entries),
            "differing": sum(data != self.alone.get(kind) for kind, data in images),
            "late": sum(entry.late for entry in self.entries),
            "other errors": sum(not isinstance(end, (bytes, *NAMED)) for end in ends),
        }

    def errors(self) -> list[tuple[str, int]]:
        """Count the errors by their type and first words, without their numbers, the most frequent first."""
        ends = [end for entry in self.entries for end in entry.outcomes if isinstance(end, BaseException)]
        return Counter(f"{type(end).__name__}: {re.sub('[0-9]+', '…', f'{end}')[:90]}" for end in ends).most_common()
