"""What every request passes, as small ASGI middlewares, and the options that set them."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from triptych.errors import invalid

# The names by which a browser on this machine asks it.
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Tell whether an address to listen on is this machine's own."""
    return host in ("localhost", "127.0.0.1", "::1")


def check_hosts(names: Sequence[str]) -> None:
    """Raise InvalidRequest where one is neither a name nor *.example.org."""
    for name in names:
        if "*" in name.removeprefix("*."):
            raise invalid("allow_host", repr(name), "a name, or *.example.org for all below one")


def check_proxies(proxies: Sequence[str]) -> None:
    """Raise InvalidRequest where one is neither an address nor a network."""
    for proxy in proxies:
        try:
            ipaddress.ip_network(proxy, strict=False)
        except ValueError:
            raise invalid("trusted_proxy", repr(proxy), "an address, or a network as 10.0.0.0/8") from None


def check_pem(certificate: object, key: object) -> None:
    """Raise InvalidRequest where only one of them is given."""
    if (certificate is None) != (key is None):
        raise invalid("tls", "a certificate without its key, or a key alone", "both, or neither")


class Proxied:
    """Drops what a caller says of a proxy, unless it is one that the operator named, and a sub-path that was not stripped."""

    def __init__(self, app: ASGIApp, proxies: Sequence[str], root_path: str = "") -> None:
        self._app, self._root = app, f"{root_path}/"
        self._proxies = [ipaddress.ip_network(proxy, strict=False) for proxy in proxies]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": self._stripped(scope["path"])}
            if not self._trusts(scope.get("client")):
                lies = (b"x-forwarded-", b"forwarded", b"x-gradio-server")
                scope["headers"] = [header for header in scope["headers"] if not header[0].lower().startswith(lies)]
        await self._app(scope, receive, send)

    def _stripped(self, path: str) -> str:
        # Gradio strips it as well: what comes after us must see the path that Gradio does.
        while len(self._root) > 1 and path.startswith(self._root):
            path = path[len(self._root) - 1 :]
        return path

    def _trusts(self, client: Any) -> bool:
        try:
            address = ipaddress.ip_address(client[0] if client else "")
        except ValueError:
            return False
        return any(address in network for network in self._proxies)


class SameOrigin:
    """Refuses what another site's page sends: a browser names that site in `Origin`.

    Args:
        friends: origins, as https://example.org, whose pages may all the same; "*" for any.
    """

    def __init__(self, app: ASGIApp, friends: Sequence[str] = ()) -> None:
        self._app, self._friends = app, friends

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin, host = headers.get("origin"), headers.get("x-forwarded-host") or headers.get("host", "")
            own = origin is None or urlsplit(origin).netloc.lower() == host.split(",")[0].strip().lower()
            if not own and "*" not in self._friends and origin not in self._friends:
                words = f"Origin: {origin!a} given; legal: this page's own. Behind a proxy: --trusted-proxy ADDRESS."
                await PlainTextResponse(words, 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)
