"""What can go wrong with a request, by the code its caller sees.

InvalidRequest       INVALID_ARGUMENT: inputs are wrong; `triptych_contract.errors` has it, callers know it as well
RequestError
├── Overloaded       UNAVAILABLE: the queue is full; says how long it is
├── Stopping         UNAVAILABLE: the server stops; says whether the request was begun
├── Lost             UNAVAILABLE: a model that comes later died; sent again it costs no step
├── Cancelled        CANCELLED: by a verb, a gone client or a deadline; says which deadline
└── StageFailed      INTERNAL: a stage raised, or an image would not have been finite
"""

from __future__ import annotations

from typing import Any


class RequestError(Exception):
    """Ends one request and no other. `facts` are for programs, and go to the caller behind the words for people."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts


class Overloaded(RequestError):
    def __init__(self, estimate_s: float, limit_s: float) -> None:
        wait = max(1, round(estimate_s - limit_s))
        words = f"queue: about {estimate_s:.0f} s of work waits, limit {limit_s:.0f} s; try again in about {wait} s"
        super().__init__(words, retry_after_s=wait)


class Stopping(RequestError):
    def __init__(self, message: str) -> None:
        super().__init__(message, stopping=True)


class Lost(RequestError):
    def __init__(self, model: str) -> None:
        words = f"lost: the process of model {model!r} ended meanwhile; send it again, with the same id nothing is drawn twice"
        super().__init__(words, lost=model)


class Cancelled(RequestError):
    pass


class StageFailed(RequestError):
    pass
