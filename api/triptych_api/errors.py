"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`, and beside them `problems`, the contract's own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from triptych.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    Problem,
    RequestCancelled,
    ServerUnavailable,
    TriptychError,
)
from triptych_web.limits import TooMany

# What OpenAI's SDKs make an exception of by the status; the kind is for people.
INVALID, LIMITED, FAILED = "invalid_request_error", "rate_limit_error", "server_error"
AWAY_S = 2


class Json(Response):
    """A JSON answer in ASCII: a stranger's text may hold what UTF-8 cannot."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Write it."""
        return json.dumps(content, separators=(",", ":")).encode("ascii")


class Refusal(TriptychError):
    """An answer that is an error of the front's own.

    Args:
        status: of HTTP.
        param: the field that is wrong.
        headers: to answer with.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})
        self.problems: tuple[Problem, ...] = ()

    @property
    def kind(self) -> str:
        """OpenAI's `type`."""
        return FAILED if self.status >= 500 else LIMITED if self.status == 429 else INVALID

    def to_json(self) -> dict[str, Any]:
        """Write it as OpenAI does."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        problems = {"problems": [problem._asdict() for problem in self.problems]} if self.problems else {}
        return {"error": {**error, **problems}}

    @property
    def answer(self) -> Json:
        """The whole answer."""
        return Json(self.to_json(), self.status, self.headers)


def refusal(error: Exception) -> Refusal:
    """Make the answer of whatever went wrong."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InvalidRequest):
        made = Refusal(400, str(error), "invalid_value", param=error.field or None)
        made.problems = error.problems
        return made
    if isinstance(error, TooMany):
        return _later(str(error), "rate_limit_exceeded", error.retry_after_s or 1)
    if isinstance(error, Overloaded):
        return _later(str(error), "queue_full", error.retry_after_s)
    if isinstance(error, ServerUnavailable):
        return Refusal(503, str(error), "server_unavailable", headers={"retry-after": str(AWAY_S)})
    if isinstance(error, DeadlineExceeded):
        # The caller's own limit, no fault here; OpenAI's SDKs would try again after the time that was given.
        return Refusal(408, str(error), "deadline_exceeded", headers={"x-should-retry": "false"})
    if isinstance(error, RequestCancelled):
        return Refusal(410, str(error), "cancelled")
    told = str(error) if isinstance(error, TriptychError) else f"a defect of this front ({type(error).__name__})"
    return Refusal(500, told, "server_error")


def _later(words: str, code: str, seconds: float) -> Refusal:
    return Refusal(429, words, code, headers={"retry-after": str(max(1, math.ceil(seconds)))})


def renamed(error: InvalidRequest, names: Mapping[str, str]) -> InvalidRequest:
    """Call the fields as the caller did: `size` where `width` is what is wrong."""
    problems = [problem.cut._replace(field=names.get(problem.field, problem.cut.field)) for problem in error.problems]
    return InvalidRequest(dict.fromkeys(problems)) if problems else error
