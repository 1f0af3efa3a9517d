"""What Ray Serve places: servers, each a Triton with its GPU; doors that pass requests on to them; fronts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle

from triptych import __version__
from triptych.async_client import AsyncClient
from triptych.errors import TriptychError
from triptych_api.app import Options as FrontOptions
from triptych_api.app import build
from triptych_server.builds import local
from triptych_server.layout import CannotServe
from triptych_server.supervisor import Server, State

from .book import Book
from .directory import DOOR, FRONT, SERVER, Facts, directory
from .door import BIND_S, LOOK_S, Door
from .metrics import application
from .scaling import SECONDS

# An application of Ray Serve's, so that it can be deployed alone, and its one deployment.
SERVERS = "triptych-servers"
TELL_S = 0.25


@dataclass(frozen=True)
class Serving:
    """How each server serves.

    Args:
        builds: folders of `triptych export` on every machine, or URLs of such; none for the demo's.
        store: folder for what is fetched; None for the user's cache.
        loopback: whether Triton listens for this machine alone; else on its address in the cluster.
        adapters: folder of LoRAs, on every machine.
        cache_mb, adapters_mb, reproducible, grace_s: as `triptych_server.Server`'s.
    """

    builds: tuple[str, ...] = ()
    store: str | None = None
    loopback: bool = False
    adapters: str | None = None
    cache_mb: float = 256
    adapters_mb: float = 4096
    reproducible: bool = False
    grace_s: float = 30

    def server(self) -> Server:
        """Make a server on free ports of this machine, once its builds are here."""
        from triptych_demo import demo_builds

        store = Path(self.store) if self.store else None
        return Server(
            [local(build, store) for build in self.builds] or demo_builds(),
            host="127.0.0.1" if self.loopback else ray.util.get_node_ip_address(),
            http_port=0,
            grpc_port=0,
            metrics_port=0,
            cache_mb=self.cache_mb,
            adapters=Path(self.adapters) if self.adapters else None,
            adapters_mb=self.adapters_mb,
            reproducible=self.reproducible,
            grace_s=self.grace_s,
        )


def doors_options(host: str, port: int, metrics_port: int) -> str:
    """Tell doors that were deployed from those that are asked for."""
    return f"{__version__} {host}:{port}:{metrics_port}"


def fronts_options(options: FrontOptions) -> str:
    """Tell fronts that were deployed from those that are asked for, without what they hold: a database's password, say."""
    return hashlib.sha256(f"{__version__} {options}".encode()).hexdigest()


class Membership:
    """Tells the directory of this replica until it leaves.

    Args:
        facts: asked every `TELL_S` seconds; what it raises is no word.
    """

    def __init__(self, kind: str, facts: Callable[[], Awaitable[Facts]]) -> None:
        where = ray.get_runtime_context()
        self._kind, self._name = kind, serve.get_replica_context().replica_id.unique_id
        self._common = {"node": where.get_node_id(), "gpus": where.get_accelerator_ids().get("GPU", [])}
        self._facts, self._directory = facts, directory()
        self._saying = asyncio.ensure_future(self._say())

    async def _say(self) -> None:
        while True:
            with contextlib.suppress(TriptychError, RayError, asyncio.TimeoutError):
                await self._directory.say.remote(self._kind, self._name, {**await self._facts(), **self._common})
            await asyncio.sleep(TELL_S)

    async def leave(self) -> None:
        """Say nothing more, and that."""
        self._saying.cancel()
        with contextlib.suppress(RayError):
            await self._directory.leave.remote(self._kind, self._name)


class Servers:
    """One replica is one Triton, watched and restarted by its supervisor, drained when Ray Serve takes it away."""

    async def __init__(self, serving: Serving) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        self._server = await asyncio.to_thread(serving.server)
        await asyncio.to_thread(self._server.start)
        self._client = AsyncClient(self._server.addresses.grpc)
        self._seconds = 0.0
        self._builds = ", ".join(serving.builds) or "demo"
        self._member = Membership(SERVER, self._facts)

    async def _facts(self) -> Facts:
        """Ask the loop itself: what does not answer is not there."""
        stats = await asyncio.wait_for(self._client.stats(), 2)
        self._seconds = stats["estimate_seconds"]
        rows = stats["rows_total"]
        return {
            "address": self._server.addresses.grpc,
            "metrics": self._server.addresses.metrics,
            "builds": self._builds,
            "seconds": self._seconds,
            "row_s": stats["step_seconds_total"] / rows if rows else 0.0,
            "jobs": int(stats["waiting"] + stats["running"]),
        }

    async def wake(self) -> None:
        """Be there: who asks waits until a server is."""

    async def check_health(self) -> None:
        """Raise what ended the service; a Triton that died alone comes back by itself."""
        if self._server.state is State.STOPPED:
            raise self._server.failure or CannotServe("stopped")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Ray Serve how much work waits here."""
        return {SECONDS: self._seconds}

    async def __del__(self) -> None:
        """Let doors send nothing more, finish what is in flight, leave no process behind."""
        await self._member.leave()
        await asyncio.to_thread(self._server.stop)


class Followed:
    """A door in this replica, told of the servers four times a second."""

    async def listen(self, host: str, port: int) -> int:
        """Answer at an address, whose port it gives."""
        book, servers = Book(), DeploymentHandle(SERVERS, SERVERS)
        self._server, bound = await Door(book, servers.wake.remote).listen(host, port)
        self._looking = asyncio.ensure_future(self._look(book))
        return bound

    async def close(self) -> None:
        """Take no new calls, finish those under way."""
        await self._server.stop(grace=60)
        self._looking.cancel()

    async def _look(self, book: Book) -> None:
        members = directory()
        while True:
            with contextlib.suppress(RayError):
                book.tell(await members.all.remote(SERVER))
            await asyncio.sleep(TELL_S)


class Page:
    """A web application at an address of its own, in this replica's event loop."""

    async def listen(self, host: str, port: int, app: Any) -> int:
        """Answer at an address, whose port it gives; 0 takes a free one."""
        import uvicorn

        family, ends = socket.AF_INET6 if ":" in host else socket.AF_INET, time.monotonic() + BIND_S
        while True:
            try:
                taken = socket.create_server((host, port), family=family)
                break
            except OSError:  # as a door's that goes
                if time.monotonic() > ends:
                    raise
                await asyncio.sleep(LOOK_S)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
        self._serving = asyncio.ensure_future(self._server.serve(sockets=[taken]))
        return int(taken.getsockname()[1])

    async def close(self) -> None:
        """Finish what is under way."""
        self._server.should_exit = True
        await self._serving


class Doors:
    """One replica is one address of Triton's gRPC."""

    async def __init__(self, host: str, port: int, metrics_port: int) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        self._door, self._metrics, members = Followed(), Page(), directory()
        bound = await self._door.listen(host, port)
        page = await self._metrics.listen(host, metrics_port, application(partial(members.all.remote, SERVER)))
        reached = ray.util.get_node_ip_address() if ip_address(host).is_unspecified else host
        self._told = {
            "address": f"{reached}:{bound}",
            "metrics": f"http://{reached}:{page}/metrics",
            "options": doors_options(host, port, metrics_port),
        }
        self._member = Membership(DOOR, self._facts)

    async def _facts(self) -> Facts:
        return self._told

    async def __del__(self) -> None:
        """Let people see no more of it, and finish what is under way."""
        await self._member.leave()
        await asyncio.gather(self._door.close(), self._metrics.close())


@serve.ingress()
class Fronts:
    """One replica is an HTTP front behind Ray Serve's proxies, with a door of its own: it outlives every other."""

    async def __init__(self, options: FrontOptions) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        self._door = Followed()
        bound = await self._door.listen("127.0.0.1", 0)
        self._options = replace(options, client={"url": f"127.0.0.1:{bound}"})
        self._told = {"options": fronts_options(options)}
        self._member = Membership(FRONT, self._facts)

    def __serve_build_asgi_app__(self) -> Any:
        """Make the front's application, once its door is open."""
        return build(self._options)

    async def _facts(self) -> Facts:
        return self._told

    async def __del__(self) -> None:
        """Close the door, after the application has ended."""
        await self._member.leave()
        await self._door.close()
