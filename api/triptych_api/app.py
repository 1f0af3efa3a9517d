"""The front as a web server: the client underneath, one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from triptych import __version__
from triptych.errors import TriptychError, invalid
from triptych_web.gates import LOOPBACK, Proxied, SameOrigin, check_hosts, check_pem, check_proxies, is_loopback
from triptych_web.limits import Limits
from triptych_web.listening import Listening

from .a1111 import A1111
from .errors import Json, Refusal, refusal
from .events import Gone, ended
from .gate import Bounded, Door
from .images import Images
from .jobs import Bounds, Jobs
from .keys import Caller, Keys
from .metrics import Metrics
from .models import Models, read_presets
from .openapi import document
from .record import JsonLines, Recorded
from .store import URLS, store


@dataclass(frozen=True)
class Options:
    """How to serve.

    Args:
        client: `AsyncClient`'s arguments but `model`: url, tls, certificates.
        host, port: where to listen; a port of 0 takes a free one.
        keys: the file of `triptych api keys`; None asks for no key, which only loopback may do.
        config: a TOML file of presets.
        allow_hosts: further names that a front without keys may be asked by; *.example.org for all below one.
        trusted_proxies: addresses, or networks as 10.0.0.0/8, of proxies whose X-Forwarded headers are believed.
        origins: of web pages that may ask, as https://example.org; "*" for any.
        certificate, key: PEM files; with them TLS is spoken.
        timeout_s: seconds that a picture may take in all.
        max_body_mb, body_s: largest body, and the seconds in which it has to come.
        under_way, a_minute: pictures at once, and begun in a minute, where no keys are asked for.
        grace_s: seconds that requests under way have at a stop.
        jobs: the file, or the URL of PostgreSQL, that keeps jobs; None for a file that goes with this process.
        bounds: how much is kept of them.
        private_webhooks: whether webhooks may go to loopback and to private networks, and without TLS.
    """

    client: Mapping[str, Any] = field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8080
    keys: Path | None = None
    config: Path | None = None
    allow_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    certificate: Path | None = None
    key: Path | None = None
    timeout_s: float = 600
    max_body_mb: int = 64
    body_s: float = 60
    under_way: int = 256
    a_minute: float = 6000
    grace_s: int = 30
    jobs: str | None = None
    bounds: Bounds = field(default_factory=Bounds)
    private_webhooks: bool = False

    @property
    def shared(self) -> bool:
        """Whether several fronts may have these jobs."""
        return self.jobs is not None and self.jobs.startswith(URLS)

    def check(self) -> None:
        """Raise InvalidRequest where the options contradict each other, or a file is none."""
        if self.keys is None and not is_loopback(self.host):
            legal = "127.0.0.1, or any with --keys FILE, which asks for a key"
            raise invalid("host", f"{self.host} without --keys", legal)
        check_pem(self.certificate, self.key)
        check_hosts(self.allow_hosts)
        check_proxies(self.trusted_proxies)
        if self.keys is not None:
            Keys(self.keys).all()


def serve(options: Options, told: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; `told` gets the address when it can be asked.

    Raises:
        InvalidRequest: the options contradict each other, or a file is none.
        OSError: the port is in use.
    """
    options.check()
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(JsonLines())
    for name, level in (("triptych_api", logging.INFO), ("uvicorn", logging.WARNING)):
        logging.getLogger(name).addHandler(lines)
        logging.getLogger(name).setLevel(level)
    asyncio.run(_serve(options, told))


async def _serve(options: Options, told: Callable[[str], None]) -> None:
    listening = Listening(options.host, options.port, options.certificate, options.key)
    await listening.serve(build(options), told, grace_s=options.grace_s, log_config=None)


def build(options: Options) -> Starlette:
    """Make the ASGI application."""
    metrics = Metrics()
    models = Models(options.client, read_presets(options.config) if options.config else {}, options.timeout_s)
    operations = Operations(models, metrics)
    jobs = Jobs(models, lambda: store(options.jobs), metrics, options.bounds, private=options.private_webhooks)
    routes = [*Images(models).routes, *jobs.routes, *A1111(models).routes, *operations.routes]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        drawing = asyncio.ensure_future(jobs.run())
        try:
            yield
        finally:
            drawing.cancel()
            await asyncio.wait([drawing])
            await ended()
            await models.close()
            jobs.close()

    paths = {route.endpoint: route.path for route in routes}
    anybody = Caller(limits=Limits(under_way=options.under_way, a_minute=options.a_minute))
    hosts = ["*"] if options.keys else [*LOOPBACK, *options.allow_hosts]
    middleware = [
        Middleware(Proxied, proxies=options.trusted_proxies),
        Middleware(ProxyHeadersMiddleware, trusted_hosts=list(options.trusted_proxies)),
        Middleware(Recorded, metrics=metrics, route_of=lambda endpoint: paths.get(endpoint, "")),
        Middleware(CORSMiddleware, allow_origins=options.origins, allow_methods=["*"], allow_headers=["*"]),
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False),
        Middleware(SameOrigin, friends=options.origins),
        Middleware(Door, keys=Keys(options.keys) if options.keys else None, anybody=anybody),
        Middleware(Bounded, most_bytes=options.max_body_mb * 2**20, within_s=options.body_s),
    ]
    handlers: Mapping[Any, Any] = {
        TriptychError: _refused,
        HTTPException: _http,
        ClientDisconnect: _gone,
        Exception: _refused,
    }
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)


async def _refused(_: Request, error: Exception) -> Response:
    return refusal(error).answer


async def _http(request: Request, error: HTTPException) -> Response:
    words = {404: f"{request.url.path} given; legal: the paths of /openapi.json"}.get(error.status_code, error.detail)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    return Refusal(error.status_code, words, code, headers=error.headers).answer


async def _gone(_request: Request, _error: Exception) -> Response:
    return Gone().answer


class Operations:
    """What those ask who run it."""

    def __init__(self, models: Models, metrics: Metrics) -> None:
        self._models, self._metrics = models, metrics
        self._document = document(__version__)
        self.routes = [
            Route("/healthz", self.health, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/openapi.json", self.document, methods=["GET"]),
        ]

    async def health(self, _: Request) -> Response:
        """Tell that this process answers."""
        return Json({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """Ask the loop itself: Triton's own readiness says yes while the loop hangs."""
        stats = await self._models.client.stats()
        told = {name: stats.get(name) for name in ("waiting", "running", "estimate_seconds")}
        return Json({"status": "ready", **told})

    async def document(self, _: Request) -> Response:
        """Give the OpenAPI document."""
        return Json(self._document)

    async def metrics(self, request: Request) -> Response:
        """Give the metrics to whoever asks from this machine or from a private network."""
        try:
            near = ipaddress.ip_address(request.client.host if request.client else "").is_private
        except ValueError:
            near = False
        if not near:
            raise HTTPException(404)
        return Response(self._metrics.page, media_type="text/plain; version=0.0.4")
