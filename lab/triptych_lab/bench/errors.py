"""What a benchmark cannot go on without."""

from __future__ import annotations

from triptych.errors import TriptychError


class BenchError(TriptychError):
    """A tool or a peer is missing or failed; the message says which, why and what mends it."""
