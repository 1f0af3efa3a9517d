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
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from triptych_contract.cards import CardError
from triptych_contract.errors import InvalidRequest, Problem, TriptychError, facts_of, from_wire, invalid

if TYPE_CHECKING:
    from tritonclient.utils import InferenceServerException

_PREFIX = re.compile(r"^(in ensemble '[^']*', )?(\[request id: [^\]]*\] )?")
_NEVER_ARRIVED = (
    "failed to connect",
    "connections to all backends failing",
    "DNS resolution",
    "errors resolving",
    "stopped accepting new inference requests",
)
# Triton's words about a model that is not loaded.
_NOT_LOADED = "no available versions"
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
    "of_another_version",
    "translate",
]


class ServerUnavailable(TriptychError):
    """Nobody answers, or not with a picture.

    Args:
        nothing_accepted: whether the server cannot have begun the request, so that it may be sent again.
        loading: whether there is a server, whose models are not loaded.
        lost: whether a model's process died over the request. Sent again with the same id, nothing is drawn twice.
    """

    def __init__(
        self,
        message: str,
        request_id: str = "",
        *,
        nothing_accepted: bool = False,
        loading: bool = False,
        lost: bool = False,
    ) -> None:
        super().__init__(message, request_id)
        self.nothing_accepted, self.loading, self.lost = nothing_accepted, loading, lost


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


def of_another_version(error: Exception) -> ServerError:
    """Make the error of an answer that this version cannot read, for the reason that reading it gave."""
    return ServerError(f"the answer is not this version's ({error if isinstance(error, CardError) else repr(error)})")


def translate(error: InferenceServerException, request_id: str) -> TriptychError:
    """tritonclient's error as ours."""
    code = str(error.status() or "").removeprefix("StatusCode.")
    message = _PREFIX.sub("", error.message() or str(error))
    if code == "INVALID_ARGUMENT":
        return from_wire(message, request_id)
    if code == "NOT_FOUND" and _NOT_LOADED not in message:
        return InvalidRequest(message=f"model: {message}", request_id=request_id)
    words, facts = facts_of(message)
    if code == "UNAVAILABLE" or _NOT_LOADED in words:
        return _unavailable(words, facts, request_id)
    if code == "DEADLINE_EXCEEDED" or "deadline_ms" in facts:
        return DeadlineExceeded(words, request_id)
    if code == "CANCELLED":
        return RequestCancelled(words, request_id)
    if _STUB_LOST.search(words):
        return _lost(words, request_id)
    return ServerError(words, request_id)


def _unavailable(words: str, facts: Mapping[str, Any], request_id: str) -> ServerUnavailable:
    if isinstance(after := facts.get("retry_after_s"), (int, float)):
        return Overloaded(words, request_id, retry_after_s=float(after))
    if "stopping" in facts:  # the request was not begun, or is on no server any more
        return ServerUnavailable(f"the server stops ({words})", request_id, nothing_accepted=True)
    if "lost" in facts:
        return _lost(words, request_id)
    loading = _NOT_LOADED in words
    if loading or any(phrase in words for phrase in _NEVER_ARRIVED):
        told = f"no server is ready there ({words})"
        return ServerUnavailable(told, request_id, nothing_accepted=True, loading=loading)
    return ServerUnavailable(f"the connection broke ({words})", request_id)


def _lost(words: str, request_id: str) -> ServerUnavailable:
    told = f"the server replaces a model ({words})"
    return ServerUnavailable(told, request_id, nothing_accepted=True, loading=True, lost=True)
