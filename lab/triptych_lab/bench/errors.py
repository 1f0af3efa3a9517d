"""The error that ends a measurement."""

from __future__ import annotations

from triptych.errors import TriptychError


class BenchError(TriptychError):
    """A tool, a peer or the server is missing or failed; the message says which, why, and what to do."""
