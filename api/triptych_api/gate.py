"""What a request passes before anything of its body is in memory: whose it is, and how much it may bring, how fast."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triptych.errors import InvalidRequest, invalid
from triptych_web.limits import Limits, TooMany

from .errors import Refusal, refusal
from .keys import Caller, Keys
from .record import Record

# Wrong keys that one address, and all together, may show in a minute.
WRONG_A_MINUTE = 60
# For whoever asks whether this front lives; the metrics' own route looks at the address.
OPEN = ("/healthz", "/readyz", "/metrics", "/openapi.json")
CLOSE = {"connection": "close"}
# So many of the largest bodies are held at once, of all requests that are being answered.
HELD = 16


class Door:
    """Finds whose key a request shows, as `Authorization: Bearer KEY` or as a password, and refuses all others.

    Args:
        keys: None where everybody may ask.
        anybody: who that is.
    """

    def __init__(self, app: ASGIApp, keys: Keys | None, anybody: Caller) -> None:
        self._app, self._keys, self._anybody = app, keys, anybody
        self._wrong = Limits(under_way=WRONG_A_MINUTE, a_minute=WRONG_A_MINUTE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            record: Record = scope["state"]["record"]
            try:
                record.caller = self._caller(scope)
            except (InvalidRequest, Refusal, TooMany) as error:
                hidden = Refusal(
                    500, "the keys cannot be read", "server_error"
                )  # where the file is, is nobody's business
                answer = refusal(hidden if isinstance(error, InvalidRequest) else error)
                answer.headers |= CLOSE
                await answer.answer(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> Caller:
        if self._keys is None or scope["path"] in OPEN:
            return self._anybody
        if caller := self._keys.caller(_shown(Headers(scope=scope))):
            return caller
        address = (scope.get("client") or ("",))[0]
        self._wrong.take(address, 1)
        self._wrong.give_back(address)
        words = "no such key: `Authorization: Bearer KEY`, with a key of `triptych api keys add`"
        raise Refusal(401, words, "invalid_api_key", headers={"www-authenticate": "Bearer"})


def _shown(headers: Headers) -> str:
    """Give the key that a request shows, "" for none; A1111's clients send it as a password."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return value.strip() if scheme.lower() == "bearer" else ""
    try:
        return base64.b64decode(value, validate=True).decode("ascii").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


class Bounded:
    """Refuses bodies that are too large, at once where they say so, too many of them, and senders that are too slow.

    Args:
        most_bytes: of a body.
        within_s: seconds in which all of it has to come.
    """

    def __init__(self, app: ASGIApp, most_bytes: int, within_s: float) -> None:
        self._app, self._most, self._within_s = app, most_bytes, within_s
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdigit() or int(length) > self._most:
            await self._too_large(f"{length[:20]} bytes").answer(scope, receive, send)
            return
        if self._held > HELD * self._most:
            words = f"bodies: {self._held} bytes are held; legal: {HELD * self._most}"
            await Refusal(429, words, "too_many_bodies", headers={"retry-after": "1", **CLOSE}).answer(
                scope, receive, send
            )
            return
        left, ends, more = self._most, time.monotonic() + self._within_s, True

        async def bounded() -> Message:
            nonlocal left, more
            if not more:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, ends - time.monotonic()))
            except asyncio.TimeoutError:
                words = str(invalid("body", f"a part of it in {self._within_s:g} s", "all of it in that time"))
                raise Refusal(408, words, "too_slow", param="body", headers=CLOSE) from None
            left -= len(message.get("body", b""))
            self._held += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
            if left < 0:
                raise self._too_large(f"more than {self._most} bytes")
            return message

        try:
            await self._app(scope, bounded, send)
        finally:
            self._held -= self._most - left

    def _too_large(self, given: str) -> Refusal:
        words = str(invalid("body", given, f"at most {self._most} bytes"))
        return Refusal(413, words, "body_too_large", param="body", headers=CLOSE)
