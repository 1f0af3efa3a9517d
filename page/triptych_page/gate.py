"""What every request passes before Gradio sees it: the session's cookie, the page's own security, no way out.

Gradio fetches addresses that a caller names, as a file's path in an event or in `file=`; this page asks nobody but its
Triptych server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import unquote

from .store import COOKIE, TOKEN, new_token

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_EVENT_BYTES = 2 * 2**20
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
WAYS_OUT = re.compile(r"(file=\s*https?:|/proxy=)", re.IGNORECASE)
ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
# Gradio puts its settings and its templates into the page as inline scripts.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)


class Gate:
    """An ASGI middleware.

    Args:
        app: what is behind it.
        hosts: the names that the page may be asked for by, None for any. Without a login only these keep another site's
            script from asking a page on loopback by a name of its own.
        secure: set the cookie for TLS only.
        root_path: where a proxy has the page, as /triptych.
    """

    def __init__(self, app: App, *, hosts: Collection[str] | None, secure: bool, root_path: str = "") -> None:
        self._app, self._hosts, self._secure = app, hosts, secure
        self._path = root_path or "/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := self._refusal(scope, headers):
            await _refuse(send, *refusal)
            return
        if scope["method"] == "POST" and not headers.get(b"content-type", "").startswith(FORMS):
            body = await _body(receive)
            if body is None or _names_an_address(body):
                await _refuse(send, 413 if body is None else 400, "This page takes no such event.")
                return
            receive = _again(body, receive)
        await self._app(scope, receive, self._dressed(scope, headers, send))

    def _refusal(self, scope: Scope, headers: MutableMapping[bytes, str]) -> tuple[int, str] | None:
        if self._hosts is not None and host_of(headers.get(b"host", "")) not in self._hosts:
            return 421, "This page is not served by that name; `triptych ui --allow-host NAME` allows one."
        if WAYS_OUT.search(unquote(scope["path"])) or WAYS_OUT.search(scope["path"]):
            return 404, "Not found."
        return None

    def _dressed(self, scope: Scope, headers: MutableMapping[bytes, str], send: Send) -> Send:
        """`send` with our headers, and a cookie for a browser that has none."""
        extra = list(HEADERS)
        if scope["path"].rstrip("/") in ("", self._path.rstrip("/")) and not TOKEN.fullmatch(token_of(headers)):
            extra.append((b"set-cookie", self._cookie(headers).encode()))

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = {name for name, _ in HEADERS}
                kept = [header for header in message.get("headers", ()) if header[0].lower() not in ours]
                message = {**message, "headers": [*kept, *extra]}
            await send(message)

        return dressed

    def _cookie(self, headers: MutableMapping[bytes, str]) -> str:
        secure = self._secure or headers.get(b"x-forwarded-proto", "").split(",")[0].strip() == "https"
        return (
            f"{COOKIE}={new_token()}; Path={self._path}; HttpOnly; SameSite=Lax; Max-Age=31536000" + "; Secure" * secure
        )


def token_of(headers: MutableMapping[bytes, str]) -> str:
    """The session's token among a request's cookies, "" where there is none."""
    try:
        cookie = SimpleCookie(headers.get(b"cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return cookie.value if cookie else ""


def host_of(header: str) -> str:
    """The name in a Host header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None where it is too large."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return body
        body += bytes(message.get("body", b""))
        if len(body) > MAX_EVENT_BYTES:
            return None
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _names_an_address(body: bytes) -> bool:
    """Whether an event names a file by an address, which Gradio would fetch."""
    if b"://" not in body and b"\\u" not in body and b"\\/" not in body:
        return False
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        return True
    paths = (found for found in _walk(event) if isinstance(found.get("path"), str))
    return any(ADDRESS.match(found["path"]) for found in paths)


def _walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in some JSON, without recursion: a caller chooses how deep it is."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            yield item
            left += item.values()
        elif isinstance(item, list):
            left += item


async def _refuse(send: Send, status: int, words: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words.encode()})
