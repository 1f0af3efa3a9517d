"""What every request passes before Gradio sees it, as small ASGI middlewares; `gates` puts them in order.

Gradio believes any proxy, answers any site, and logs out whoever follows a link; this page does none of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triptych_web.gates import Proxied, SameOrigin
from triptych_web.limits import Limits, TooMany

from .store import COOKIE, TOKEN, new_token
from .templates import fragment

# A password is asked for by hand: more from one address, or at once from all, are guesses.
LOGINS_A_MINUTE, LOGINS_IN_ALL = 60, 200
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
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    # Not "no-referrer": with it a browser names no origin when it sends a form.
    "referrer-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


def gates(*, hosts: Iterable[str] | None, proxies: Sequence[str] = (), root_path: str = "") -> list[Middleware]:
    """Put the middlewares in order, the outermost first.

    Args:
        hosts: the names that the page may be asked for by, None for any. Without a login only these keep another site's
            script from asking a page on loopback by a name of its own.
        proxies: addresses and networks whose X-Forwarded headers are believed.
        root_path: where a proxy has the page, as /triptych.
    """
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    names = ["*"] if hosts is None else list(hosts)
    return [
        Middleware(Proxied, proxies=proxies, root_path=root_path),
        Middleware(ProxyHeadersMiddleware, trusted_hosts=list(proxies)),
        Middleware(Dressed, path=root_path or "/"),
        Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False),
        Middleware(SameOrigin),
        Middleware(Logins),
        Middleware(Logout),
    ]


class Dressed:
    """Adds our headers to every answer, and to the page's the cookie of a session where a browser has none.

    Args:
        path: where the page is.
    """

    def __init__(self, app: ASGIApp, path: str) -> None:
        self._app, self._path = app, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if scope["path"] == "/" and not TOKEN.fullmatch(HTTPConnection(scope).cookies.get(COOKIE, "")):
                    headers.append("set-cookie", self._cookie(secure=scope["scheme"] == "https"))
            await send(message)

        await self._app(scope, receive, dressed)

    def _cookie(self, *, secure: bool) -> str:
        made = Response()
        made.set_cookie(COOKIE, new_token(), max_age=31536000, path=self._path, secure=secure, httponly=True)
        return made.headers["set-cookie"]


class Logins:
    """Refuses an address that asks for more logins than people do, before any password is hashed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._limits = app, Limits(under_way=LOGINS_A_MINUTE, a_minute=LOGINS_A_MINUTE, in_all=LOGINS_IN_ALL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"].rstrip("/") != "/login":
            await self._app(scope, receive, send)
            return
        address = (scope.get("client") or ("",))[0]
        try:
            self._limits.take(address, 1)
        except TooMany:
            words = f"Too many logins; legal: {LOGINS_A_MINUTE} a minute from one address."
            await PlainTextResponse(words, 429, {"retry-after": "60"})(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._limits.give_back(address)


class Logout:
    """Asks before it logs out: a link or a picture on another site's page can only make a browser GET."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].rstrip("/") == "/logout":
            if scope["method"] != "POST":
                await HTMLResponse(fragment("logout"))(scope, receive, send)
                return
            scope = {**scope, "method": "GET"}  # as Gradio has it
        await self._app(scope, receive, send)
