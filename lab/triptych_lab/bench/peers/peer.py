"""What the benchmark asks of whatever draws pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Peer(Protocol):
    """Somebody else's way to draw. Loaded and warm when it is handed out."""

    name: str

    def draw(self, requests: Sequence[Mapping[str, Any]], *, batch: int = 1) -> float:
        """Seconds for all requests, as PNG files in memory: one call for each `batch` of them, one call after another.

        Requests of one call differ in prompt and seed only.
        """
        ...

    def picture(self, request: Mapping[str, Any]) -> bytes:
        """The PNG file of one request."""
        ...
