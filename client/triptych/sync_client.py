"""`Client`: `AsyncClient` for code without an event loop. All of the logic is there; here is only the bridge."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from triptych_contract.cards import ModelCard

from .async_client import AsyncClient, AsyncJob
from .parameters import AnyParameters
from .types import Event, GeneratedImage

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")


class _Bridge:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="triptych-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end; an interrupt here cancels it there."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[[], T]) -> T:
        """Call a plain function on the loop."""

        async def work() -> T:
            return function()

        return self.run(work())

    def iterate(self, events: AsyncIterator[T]) -> Iterator[T]:
        try:
            while True:
                try:
                    item = self.run(_next(events))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if hasattr(events, "aclose") and not self.closed:
                self.run(events.aclose())

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(events: AsyncIterator[T]) -> T:
    return await events.__anext__()


class Client:
    """A client of one Triptych server; takes `AsyncClient`'s arguments. Use it in a `with`, or `close` it."""

    def __init__(self, url: str = "localhost:8001", **options: Any) -> None:
        self._bridge = _Bridge()
        try:
            self._client = self._bridge.call(lambda: AsyncClient(url, **options))
        except BaseException:
            self._bridge.close()
            raise

    def generate(
        self, prompt: str, *, timeout: float | None = None, **parameters: Unpack[AnyParameters]
    ) -> GeneratedImage:
        """`AsyncClient.generate`."""
        return self._bridge.run(self._client.generate(prompt, timeout=timeout, **parameters))

    def generate_many(
        self, prompt: str, n: int, *, timeout: float | None = None, **parameters: Unpack[AnyParameters]
    ) -> list[GeneratedImage]:
        """`AsyncClient.generate_many`."""
        return self._bridge.run(self._client.generate_many(prompt, n, timeout=timeout, **parameters))

    def stream(
        self,
        prompt: str,
        *,
        timeout: float | None = None,
        previews: bool = False,
        **parameters: Unpack[AnyParameters],
    ) -> Iterator[Event]:
        """`AsyncClient.stream`."""
        return self._bridge.iterate(self._client.stream(prompt, timeout=timeout, previews=previews, **parameters))

    def submit(self, prompt: str, *, timeout: float | None = None, **parameters: Unpack[AnyParameters]) -> Job:
        """`AsyncClient.submit`."""
        job = self._bridge.call(lambda: self._client.submit(prompt, timeout=timeout, **parameters))
        return Job(self._bridge, job)

    def ready(self) -> bool:
        """`AsyncClient.ready`."""
        return self._bridge.run(self._client.ready())

    def stats(self) -> dict[str, float]:
        """`AsyncClient.stats`."""
        return self._bridge.run(self._client.stats())

    def models(self) -> dict[str, Any]:
        """`AsyncClient.models`."""
        return self._bridge.run(self._client.models())

    def describe(self) -> dict[str, Any]:
        """`AsyncClient.describe`."""
        return self._bridge.run(self._client.describe())

    def card(self) -> ModelCard:
        """`AsyncClient.card`."""
        return self._bridge.run(self._client.card())

    def check(self, prompt: str, **parameters: Unpack[AnyParameters]) -> None:
        """`AsyncClient.check`."""
        self._bridge.run(self._client.check(prompt, **parameters))

    def verify(self, *, timeout: float | None = None) -> dict[str, Any]:
        """`AsyncClient.verify`."""
        return self._bridge.run(self._client.verify(timeout=timeout))

    def close(self) -> None:
        """Cancel what is still in flight, disconnect, end the thread."""
        if not self._bridge.closed:
            self._bridge.run(self._client.close())
            self._bridge.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Job:
    """One request under way: `AsyncJob` for code without an event loop."""

    def __init__(self, bridge: _Bridge, job: AsyncJob) -> None:
        self._bridge, self._job = bridge, job
        self.id, self.seed = job.id, job.seed

    def get(self) -> GeneratedImage:
        """`AsyncJob.get`."""
        return self._bridge.run(self._job.get())

    def status(self, *, previews: bool = False) -> dict[str, Any]:
        """`AsyncJob.status`."""
        return self._bridge.run(self._job.status(previews=previews))

    def cancel(self) -> bool:
        """`AsyncJob.cancel`."""
        return self._bridge.run(self._job.cancel())

    def iter_events(self, *, previews: bool = False) -> Iterator[Event]:
        """`AsyncJob.iter_events`."""
        return self._bridge.iterate(self._job.iter_events(previews=previews))
