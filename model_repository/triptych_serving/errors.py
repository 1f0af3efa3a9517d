"""What can go wrong with a request, by the code its caller sees.

RequestError
├── InvalidRequest   INVALID_ARGUMENT: an input is wrong; names the field, what was given and what is legal
├── Overloaded       UNAVAILABLE: the queue is full; says how long it is
├── Stopping         UNAVAILABLE: the server stops; says whether the request was begun
├── Cancelled        CANCELLED: by a verb, a gone client or a deadline
└── StageFailed      INTERNAL: a stage raised, or an image would not have been finite
"""

from __future__ import annotations

SHOWN_CHARACTERS = 60


class RequestError(Exception):
    """Ends one request and no other."""


class InvalidRequest(RequestError):
    def __init__(self, field: str, given: object, legal: str) -> None:
        shown = str(given)
        shown = shown if len(shown) <= SHOWN_CHARACTERS else shown[: SHOWN_CHARACTERS - 1] + "…"
        super().__init__(f"{field}: {shown} given; legal: {legal}")
        self.field, self.given, self.legal = field, shown, legal


class Overloaded(RequestError):
    def __init__(self, estimate_s: float, limit_s: float) -> None:
        wait = max(1, round(estimate_s - limit_s))
        super().__init__(
            f"queue: about {estimate_s:.0f} s of work waits, limit {limit_s:.0f} s; try again in about {wait} s"
        )


class Stopping(RequestError):
    pass


class Cancelled(RequestError):
    pass


class StageFailed(RequestError):
    pass
