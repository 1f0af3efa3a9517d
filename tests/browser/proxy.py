"""A reverse proxy as people put before a page: a sub-path, stripped, and what is behind it named in headers."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import uvicorn

# Of one connection, not of the message (RFC 9110, 7.6.1).
HOP = {b"connection", b"transfer-encoding", b"keep-alive", b"host", b"content-length"}


class Proxy:
    """An ASGI application that passes what is under `prefix` to `target`, the answer piece by piece."""

    def __init__(self, prefix: str, target: str) -> None:
        self._prefix, self._target = prefix, target.rstrip("/")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["raw_path"].decode()
        if not path.startswith(f"{self._prefix}/"):
            await _answer(send, 404, [])
            return
        told = dict(scope["headers"])
        headers = [(name, value) for name, value in scope["headers"] if name not in HOP]
        headers += [(b"x-forwarded-host", told[b"host"]), (b"x-forwarded-proto", b"http")]
        url = self._target + path.removeprefix(self._prefix) + f"?{scope['query_string'].decode()}"
        body = await _body(receive)
        async with (
            httpx.AsyncClient(timeout=None) as client,
            client.stream(scope["method"], url, headers=headers, content=body) as answer,
        ):
            kept = [(name, value) for name, value in answer.headers.raw if name.lower() not in HOP]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
            async for piece in answer.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _body(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _answer(send: Any, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


@contextlib.contextmanager
def proxied(prefix: str, target: str) -> Iterator[str]:
    """The address of the page behind a proxy on a free port."""
    app = Proxy(prefix, target)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}{prefix}/"
        finally:
            server.should_exit = True
            thread.join(20)
