"""Each session to its own: its events, its uploads, its pictures. Gradio knows logins, but no sessions."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .store import COOKIE, TOKEN, Session, Store, key_of

API = "/gradio_api/"
# What the page's own script asks for; Gradio has more, such as a way out to other hosts.
OPEN = re.compile(r"startup-events|theme\.css|app_id|login_check")
ASKED = re.compile(r"run/predict|queue/(join|data)|cancel|reset|upload|upload_progress|info|heartbeat/[^/]+|file=.+")
# Which of them read JSON.
EVENTS = re.compile(r"run/predict|queue/join|cancel|reset")
MAX_EVENT_BYTES = 2 * 2**20
MAX_NAMES = 20_000
# Shown in the browser; all else is downloaded.
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
NO_COOKIE = "This page keeps its pictures by a cookie; allow it and load the page again."
NO_SUCH_EVENT = "This page takes no such event."


class Private:
    """An ASGI middleware before Gradio's own interface.

    Args:
        store: the sessions.
        user_of: whose login a request's cookies are, None for nobody's.
        login: whether there has to be one.
        max_upload_bytes: of each file.
        own: what the page's own script asks for, and how a session is answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        store: Store,
        user_of: Callable[[Mapping[str, str]], str | None],
        *,
        login: bool,
        max_upload_bytes: int,
        own: Mapping[str, Callable[[Session, Request], Awaitable[Response]]],
    ) -> None:
        self._app, self._store, self._user_of = app, store, user_of
        self._login, self._max_upload_bytes, self._own = login, max_upload_bytes, own
        self._owners: OrderedDict[str, str] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(API):
            await self._app(scope, receive, send)
            return
        asked = scope["path"].removeprefix(API).rstrip("/")
        answer: Response | None = None
        if not OPEN.fullmatch(asked):
            answer, receive = await self._answer(asked, Request(scope, receive))
        await (answer or self._app)(scope, receive, send)

    async def _answer(self, asked: str, request: Request) -> tuple[Response | None, Receive]:
        """Answer in Gradio's place, or None where it is to; and what it is to read."""
        token, user = request.cookies.get(COOKIE, ""), self._user_of(request.cookies)
        if asked not in self._own and not ASKED.fullmatch(asked):
            return PlainTextResponse("Not found.", 404), request.receive
        if self._login and user is None:
            return JSONResponse({"detail": "Not authenticated"}, 401), request.receive
        if not TOKEN.fullmatch(token):
            return JSONResponse({"error": NO_COOKIE}, 403), request.receive
        names = [request.query_params.get(name) for name in ("session_hash", "upload_id")]
        names += [asked.removeprefix("heartbeat/") if asked.startswith("heartbeat/") else None]
        key, receive = key_of(token, user), request.receive
        if EVENTS.fullmatch(asked):
            body = await _body(request)
            event = None if body is None else _event(body)
            if body is None or event is None or not self._is_own(event, self._store.find(token, user)):
                return PlainTextResponse(NO_SUCH_EVENT, 413 if body is None else 400), receive
            names.append(event.get("session_hash"))
            receive = _again(body, receive)
        if not all(self._owns(key, name) for name in names if name is not None):
            return PlainTextResponse("Not found.", 404), receive
        if asked in self._own:
            return await self._own[asked](self._store.session(token, user), request), receive
        if asked.startswith("file="):
            return _file(self._store.find(token, user), asked.removeprefix("file=")), receive
        if asked == "upload" and request.method == "POST":
            return await self._upload(self._store.session(token, user), request), receive
        return None, receive

    def _owns(self, key: str, name: Any) -> bool:
        """Tell whether a name that a page made up is this session's: it belongs to who gave it first."""
        if not isinstance(name, str) or len(name) > 100:
            return False
        owner = self._owners.setdefault(name, key)
        self._owners.move_to_end(name)
        if len(self._owners) > MAX_NAMES:
            self._owners.popitem(last=False)
        return owner == key

    def _is_own(self, event: Mapping[str, Any], session: Session | None) -> bool:
        """Tell whether all files of an event are the session's; Gradio opens a path and fetches an address."""
        files = [found for found in _walk(event) if isinstance(found.get("path"), str)]
        inline = any(str(found.get("url")).startswith("data:") for found in files)
        return not inline and all(session is not None and session.owns(found["path"]) for found in files)

    async def _upload(self, session: Session, request: Request) -> Response:
        from gradio.route_utils import MultiPartException, upload_fn
        from gradio.routes import file_upload_statuses

        name = request.query_params.get("upload_id")
        told = file_upload_statuses if name else None
        try:
            paths, *_ = await upload_fn(request, session.uploads, self._max_upload_bytes, name, upload_progress=told)
        except MultiPartException as error:
            return PlainTextResponse(error.message, 413 if "maximum allowed size" in error.message else 400)
        return JSONResponse(list(map(str, paths)))


def _file(session: Session | None, path: str) -> Response:
    if session is None or not session.owns(path) or not Path(path).is_file():
        return PlainTextResponse("Not found.", 404)
    kind = PICTURES.get(Path(path).suffix.lower())
    return FileResponse(
        path,
        media_type=kind or "application/octet-stream",
        filename=Path(path).name,
        content_disposition_type="inline" if kind else "attachment",
        headers={"cache-control": "private"},
    )


async def _body(request: Request) -> bytes | None:
    """Read the whole body; None where it is too large."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_EVENT_BYTES:
            return None
    return body


def _again(body: bytes, receive: Receive) -> Receive:
    """Make a `receive` that gives the body that was read, then what comes after it."""
    pieces: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return pieces.pop() if pieces else await receive()

    return again


def _event(body: bytes) -> dict[str, Any] | None:
    """Parse a JSON object; None where it is none."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _walk(value: Any) -> Iterator[dict[str, Any]]:
    """Find every object in some JSON, without recursion: a caller chooses how deep it is."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            yield item
            left += item.values()
        elif isinstance(item, list):
            left += item
