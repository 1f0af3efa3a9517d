"""Draw many small pictures on one server, with a given number of requests in flight."""

from __future__ import annotations

from dataclasses import dataclass

from .load import draw_all
from .memory import Peak
from .requests import same

# Little work for the model, so that the cost of a queue shows.
SMALL = {"num_inference_steps": 2, "height": 64, "width": 64}


@dataclass(frozen=True)
class QueueRun:
    """Mean seconds for a picture, and the most bytes meanwhile of the server's processes and of this one, the client."""

    seconds: float
    server_bytes: float
    client_bytes: float


class Queues:
    """Draw the same pictures at different depths of the queue."""

    def __init__(self, url: str, pictures: int) -> None:
        self._url, self._requests = url, same(pictures, **SMALL)

    def run(self, depth: int) -> QueueRun:
        """Draw all pictures, keeping `depth` requests in flight until the last has been sent."""
        with Peak() as peak:
            seconds = draw_all(self._url, self._requests, depth)
        return QueueRun(seconds / len(self._requests), peak.children, peak.own)
