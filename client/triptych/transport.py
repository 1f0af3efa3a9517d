"""The wire: one call, scalars and pairs in, scalars out. The only place that knows tritonclient."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import cached_property
from ipaddress import ip_address
from typing import Any, Protocol
from urllib.parse import urlsplit

from triptych_contract.verbs import DATATYPES

from .errors import Overloaded, ServerUnavailable, translate

KEEPALIVE_MS = 60_000
MAX_BACKOFF_MS = 2_000
# A name is resolved anew after so many seconds, and a server that was away left out for so many.
LOOK_S, AWAY_S = 5.0, 2.0
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
# Headers that go along with every call of whoever sets it, as `traceparent`: Triton's traces then join the caller's.
TRACE: ContextVar[Mapping[str, str] | None] = ContextVar("trace", default=None)


def is_loopback(url: str) -> bool:
    """Tell whether a gRPC address, as `localhost:8001` or `dns:///[::1]:8001`, is this machine's own."""
    try:
        host = urlsplit("//" + re.sub(r"^(dns|ipv4|ipv6):(//[^/]*/)?", "", url)).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # another name, or no address at all
        return False


class Transport(Protocol):
    """Raises only errors of `triptych.errors`."""

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        *,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Call `model` with scalars (text, bytes, int, float, bool) or tuples of them; its outputs by name, as scalars."""
        ...

    async def one(self) -> Transport:
        """Give the same to one server, for the calls of one job: those about it must find it."""
        ...

    async def ready(self) -> bool: ...

    async def close(self) -> None: ...


class TritonTransport:
    """tritonclient over gRPC. Belongs to the event loop that first uses it. A certificate asks for TLS."""

    _options: Sequence[tuple[str, Any]] = ()

    def __init__(
        self,
        url: str,
        *,
        tls: bool = False,
        root_certificates: str | None = None,
        private_key: str | None = None,
        certificate_chain: str | None = None,
    ) -> None:
        self._url = url
        self._certificates = {
            "root_certificates": root_certificates,
            "private_key": private_key,
            "certificate_chain": certificate_chain,
        }
        self._tls = tls or any(self._certificates.values())
        self._servers = _Servers(*name, self._to) if (name := _name(url)) else None

    async def one(self) -> Transport:
        return self if self._servers is None else await self._servers.next()

    def _to(self, address: str) -> TritonTransport:
        return _OneServer(address, self._url, tls=self._tls, **self._certificates)

    @cached_property
    def _triton(self) -> Any:
        import tritonclient.grpc.aio

        return tritonclient.grpc.aio

    @cached_property
    def _client(self) -> Any:
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", 20_000),
            # A server counts pings in silence as abuse; it forgives two.
            ("grpc.http2.max_pings_without_data", 2),
            ("grpc.lb_policy_name", "round_robin"),
            # gRPC would wait up to two minutes between looks for a server that went away.
            ("grpc.max_reconnect_backoff_ms", MAX_BACKOFF_MS),
            # A proxy's own loopback is another machine's.
            *([("grpc.enable_http_proxy", 0)] if is_loopback(self._url) else []),
            *self._options,
        ]
        return self._triton.InferenceServerClient(self._url, ssl=self._tls, channel_args=options, **self._certificates)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        *,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        from tritonclient.utils import InferenceServerException

        try:
            result = await self._client.infer(
                model,
                [self._tensor(name, value) for name, value in inputs.items()],
                outputs=[self._triton.InferRequestedOutput(name) for name in outputs],
                request_id=request_id,
                client_timeout=timeout_s,
                headers=dict(TRACE.get() or {}) or None,
            )
        except InferenceServerException as error:
            raise translate(error, request_id) from None
        return {name: result.as_numpy(name).reshape(-1)[0] for name in outputs}

    async def ready(self) -> bool:
        from tritonclient.utils import InferenceServerException

        try:
            return bool(await self._client.is_server_ready(client_timeout=5))
        except InferenceServerException:
            return False

    async def close(self) -> None:
        if self._servers is not None:
            await self._servers.close()
        if "_client" in vars(self):
            await self._client.close()

    def _tensor(self, name: str, value: Any) -> Any:
        import numpy as np

        datatype = DATATYPES[name]
        numpy = {"BYTES": np.object_, "INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_}
        values = np.array(value if isinstance(value, tuple) else [value], numpy[datatype])
        tensor = self._triton.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values)
        return tensor


class _OneServer(TritonTransport):
    """One of several servers that a name stands for.

    Args:
        address: of it.
        name: URL of all, whose host its certificate is for.
    """

    def __init__(self, address: str, name: str, **options: Any) -> None:
        super().__init__(address, **options)
        host = _name(name)
        self.away_until = 0.0
        self._options = [("grpc.ssl_target_name_override", host[0])] if host and self._tls else []

    async def infer(self, *args: Any, **options: Any) -> dict[str, Any]:
        try:
            return await super().infer(*args, **options)
        except Overloaded:
            raise
        except ServerUnavailable:
            self.away_until = time.monotonic() + AWAY_S
            raise


class _Servers:
    """The servers that a name stands for, in turn; those that were away a moment ago are left out while there are others."""

    def __init__(self, host: str, port: int, make: Callable[[str], TritonTransport]) -> None:
        self._host, self._port, self._make = host, port, make
        self._found: dict[str, Any] = {}
        self._turns, self._looked_at = itertools.count(), float("-inf")

    async def next(self) -> Transport:
        if time.monotonic() - self._looked_at > LOOK_S:
            await self._look()
        there = [one for one in self._found.values() if one.away_until < time.monotonic()]
        among = there or [*self._found.values()]
        chosen: Transport = among[next(self._turns) % len(among)]
        return chosen

    async def _look(self) -> None:
        """Resolve the name anew. Whoever still speaks with a server that it has no more ends that in peace."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            if self._found:
                return
            raise ServerUnavailable(
                f"no server is ready there ({self._host}: {error})", nothing_accepted=True
            ) from None
        self._looked_at = time.monotonic()
        addresses = [_address(*one[4][:2]) for one in found]
        self._found = {one: self._found.get(one) or self._make(one) for one in dict.fromkeys(addresses)}

    async def close(self) -> None:
        await asyncio.gather(*(one.close() for one in self._found.values()))


def _address(host: object, port: object) -> str:
    """Write what a name led to as gRPC takes it, with nothing left to resolve."""
    return f"ipv6:[{host}]:{port}" if ":" in str(host) else f"ipv4:{host}:{port}"


def _name(url: str) -> tuple[str, int] | None:
    """Give host and port of a URL that stands for several servers; None for one server, or where a proxy finds it."""
    found = re.fullmatch(r"dns:(?:///)?([^/]+)", url)
    if found is None or (not is_loopback(url) and any(os.environ.get(proxy) for proxy in PROXIES)):
        return None
    try:
        parts = urlsplit(f"//{found[1]}")
        return (parts.hostname, parts.port) if parts.hostname and parts.port else None
    except ValueError:
        return None
