"""What a fetch raises."""

from __future__ import annotations

from triptych.errors import TriptychError


class FetchError(TriptychError):
    """Weights cannot be fetched, or differ from what the hub states; the message says what mends it. Holds no token."""
