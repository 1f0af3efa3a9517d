"""The interface of a peer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Peer(Protocol):
    """Another way to draw pictures with the same weights, loaded and warm."""

    name: str

    def draw(self, requests: Sequence[Mapping[str, Any]], *, batch: int = 1) -> float:
        """Draw all requests to PNG files in memory, `batch` of them a call, one call after another; return the seconds.

        The requests of one call may differ in prompt and seed only.
        """
        ...

    def picture(self, request: Mapping[str, Any]) -> bytes:
        """Draw one request; return a PNG file."""
        ...
