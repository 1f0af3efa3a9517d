"""What the client raises, and the one place where foreign errors become ours.

TriptychError
├── InvalidRequest (ValueError)   inputs are wrong; `.problems` has each with field, given and legal
├── ServerUnavailable             nobody answers, or the connection broke
│   └── Overloaded                the queue is full; `.retry_after_s`
├── RequestCancelled              by `cancel`, here or elsewhere
├── DeadlineExceeded              the request's own timeout passed
└── ServerError                   a defect on the server
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from triptych_contract.errors import InvalidRequest, Problem, TriptychError, from_wire, invalid

if TYPE_CHECKING:
    from tritonclient.utils import InferenceServerException

_PREFIX = re.compile(r"^(in ensemble '[^']*', )?(\[request id: [^\]]*\] )?")
_RETRY_AFTER = re.compile(r"try again in about (\d+) s")
_NEVER_ARRIVED = (
    "failed to connect",
    "connections to all backends failing",
    "DNS resolution",
    "errors resolving",
    "no available versions",
    "stopped accepting new inference requests",
)
# Ours about a server that stops: the request was not begun, or is on no server any more.
_STOPPING = ("draining: ", "stopped: ")
# Triton's words about a process that died or that it took for dead; the job is then on no server any more.
_STUB_LOST = re.compile(r"Stub process .*is not healthy|Failed to obtain the health mutex")

__all__ = [
    "DeadlineExceeded",
    "InvalidRequest",
    "Overloaded",
    "Problem",
    "RequestCancelled",
    "ServerError",
    "ServerUnavailable",
    "TriptychError",
    "invalid",
    "translate",
]


class ServerUnavailable(TriptychError):
    """`nothing_accepted` tells that the server cannot have begun the request, so that it may be sent again."""

    def __init__(self, message: str, request_id: str = "", *, nothing_accepted: bool = False) -> None:
        super().__init__(message, request_id)
        self.nothing_accepted = nothing_accepted


class Overloaded(ServerUnavailable):
    """The queue is full; there should be room in `retry_after_s` seconds."""

    def __init__(self, message: str, request_id: str = "", *, retry_after_s: float = 1.0) -> None:
        super().__init__(message, request_id, nothing_accepted=True)
        self.retry_after_s = retry_after_s


class RequestCancelled(TriptychError):
    pass


class DeadlineExceeded(TriptychError):
    pass


class ServerError(TriptychError):
    pass


def translate(error: InferenceServerException, request_id: str) -> TriptychError:
    """tritonclient's error as ours."""
    code = str(error.status() or "").removeprefix("StatusCode.")
    message = _PREFIX.sub("", error.message() or str(error))
    if code == "INVALID_ARGUMENT":
        return from_wire(message, request_id)
    if code == "NOT_FOUND":
        return InvalidRequest(message=f"model: {message}", request_id=request_id)
    if code == "UNAVAILABLE" or "no available versions" in message:
        return _unavailable(message, request_id)
    if code == "DEADLINE_EXCEEDED" or message.startswith("deadline_ms: "):
        return DeadlineExceeded(message, request_id)
    if code == "CANCELLED":
        return RequestCancelled(message, request_id)
    if _STUB_LOST.search(message):
        return ServerUnavailable(f"the server restarts ({message})", request_id, nothing_accepted=True)
    return ServerError(message, request_id)


def _unavailable(message: str, request_id: str) -> ServerUnavailable:
    if message.startswith("queue: "):
        after = _RETRY_AFTER.search(message)
        return Overloaded(message, request_id, retry_after_s=float(after[1]) if after else 1.0)
    if message.startswith(_STOPPING):
        return ServerUnavailable(f"the server stops ({message})", request_id, nothing_accepted=True)
    never_arrived = any(phrase in message for phrase in _NEVER_ARRIVED)
    words = f"no server is ready there ({message})" if never_arrived else f"the connection broke ({message})"
    return ServerUnavailable(words, request_id, nothing_accepted=never_arrived)
