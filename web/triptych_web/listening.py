"""A web server that tells its address, and ends quietly."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Listening:
    """A socket that listens already: a taken port is an error of ours, and a free one is known.

    Args:
        host, port: where; a port of 0 takes a free one.
        certificate, key: PEM files; with them TLS is spoken.

    Raises:
        OSError: the port is in use.
    """

    def __init__(self, host: str, port: int, certificate: Path | None = None, key: Path | None = None) -> None:
        self._certificate, self._key = certificate, key
        # asyncio sends without Nagle's delay, 40 ms an answer, only where the protocol is said.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, f"{host}:{port}: {error.strerror}; --port 0 takes a free one") from None

    @property
    def address(self) -> str:
        """The address without a path, as http://127.0.0.1:8080."""
        name, port, *_ = self._socket.getsockname()
        scheme = "https" if self._certificate else "http"
        return f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}"

    async def serve(self, app: Any, told: Callable[[str], None], *, grace_s: int, **config: Any) -> None:
        """Serve until Ctrl-C or SIGTERM; `told` gets the address when it can be asked.

        Args:
            app: an ASGI application.
            grace_s: seconds that answers under way have at the end.
            config: more for `uvicorn.Config`.
        """
        import uvicorn

        from .hasty import Hasty

        made = uvicorn.Config(
            app,
            http=Hasty,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ssl_certfile=self._certificate,
            ssl_keyfile=self._key,
            timeout_graceful_shutdown=grace_s,
            **config,
        )
        server = uvicorn.Server(made)
        teller = asyncio.ensure_future(_tell(server, lambda: told(self.address)))
        with _ended_quietly():
            await server.serve(sockets=[self._socket])
        teller.cancel()


async def _tell(server: Any, told: Callable[[], None]) -> None:
    """Tell as soon as the page can be opened."""
    while not server.started:
        await asyncio.sleep(0.02)
    told()


@contextlib.contextmanager
def _ended_quietly() -> Iterator[None]:
    """Ignore the signal that uvicorn raises once more after it has ended by it: files are still to be deleted."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
