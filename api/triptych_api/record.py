"""What is known of one request: who asks, for what, and how it ended; one line of the audit log, and metrics."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triptych.transport import TRACE
from triptych.types import GeneratedImage

from .asked import Asked
from .keys import Caller
from .metrics import Metrics

AUDIT = logging.getLogger("triptych_api.audit")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# W3C Trace Context: version, trace, parent, flags.
TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass
class Record:
    """One request; `drawn` and `queued_s` are of its pictures."""

    id: str
    metrics: Metrics
    caller: Caller = field(default_factory=Caller)
    trace: str = ""
    model: str = ""
    pictures: int = 0
    jobs: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def begun(self, wanted: Asked) -> Iterator[None]:
        """Count pictures as under way, within the caller's limits.

        Raises:
            TooMany: over a limit.
        """
        self.model = wanted.model.name
        self.caller.limits.take(self.caller.id, wanted.n)
        try:
            yield
        finally:
            self.caller.limits.give_back(self.caller.id, wanted.n)

    def drawn(self, images: Sequence[GeneratedImage]) -> None:
        """Count pictures as drawn."""
        self.pictures += len(images)
        self.jobs += [image.request_id for image in images]
        self.metrics.images.labels(self.model).inc(len(images))
        for image in images:
            self.metrics.queued.observe(image.timings.get("queue_ms", 0) / 1e3)


def record_of(request: Request) -> Record:
    """Give the record that `Recorded` began."""
    return cast("Record", request.scope["state"]["record"])


class Recorded:
    """Begins each request's record, and ends it: a line of the audit log without a key, a prompt or a query."""

    def __init__(self, app: ASGIApp, metrics: Metrics, route_of: Callable[[Any], str]) -> None:
        self._app, self._metrics, self._route_of = app, metrics, route_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, began, status = Headers(scope=scope), time.monotonic(), 500
        given = headers.get("x-request-id", "")
        record = Record(given if REQUEST_ID.fullmatch(given) else str(uuid.uuid4()), self._metrics)
        scope.setdefault("state", {})["record"] = record
        token = TRACE.set(_trace(headers, record))

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.id
            await send(message)

        self._metrics.open.inc()
        try:
            await self._app(scope, receive, told)
        finally:
            TRACE.reset(token)
            self._metrics.open.dec()
            seconds, route = time.monotonic() - began, self._route_of(scope.get("endpoint"))
            self._metrics.requests.labels(route, record.model, outcome(status)).observe(seconds)
            client = (scope.get("client") or ("",))[0]
            facts = {"method": scope["method"], "route": route, "status": status, "client": client}
            _audit(record, {**facts, "ms": round(seconds * 1e3, 1)})


def outcome(status: int) -> str:
    """Give what a status means, in few words: metrics have one series for each."""
    named = {401: "unauthorized", 408: "late", 429: "limited", 499: "gone", 503: "unavailable"}
    return named.get(status, "ok" if status < 400 else "refused" if status < 500 else "failed")


def _trace(headers: Headers, record: Record) -> Mapping[str, str] | None:
    given = headers.get("traceparent", "")
    if (found := TRACEPARENT.fullmatch(given)) is None:
        return None
    record.trace = found[1]
    return {"traceparent": given}


def _audit(record: Record, facts: Mapping[str, Any]) -> None:
    asked = {"model": record.model, "pictures": record.pictures, "jobs": record.jobs} if record.model else {}
    who = {"key": record.caller.id, "tenant": record.caller.tenant}
    AUDIT.info("request", extra={"facts": {"request_id": record.id, "trace_id": record.trace, **who, **facts, **asked}})


class JsonLines(logging.Formatter):
    """Writes each record of a log as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Write it."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        line = {"time": when, "level": record.levelname.lower(), "logger": record.name, "event": record.getMessage()}
        failed = {"exception": self.formatException(record.exc_info)} if record.exc_info else {}
        return json.dumps({**line, **getattr(record, "facts", {}), **failed})
