"""The wire: one call, scalars and pairs in, scalars out. The only place that knows tritonclient."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import cached_property
from ipaddress import ip_address
from typing import Any, Protocol
from urllib.parse import urlsplit

from triptych_contract.verbs import DATATYPES

from .errors import translate

KEEPALIVE_MS = 60_000
MAX_BACKOFF_MS = 2_000
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

    async def ready(self) -> bool: ...

    async def close(self) -> None: ...


class TritonTransport:
    """tritonclient over gRPC. Belongs to the event loop that first uses it. A certificate asks for TLS."""

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
