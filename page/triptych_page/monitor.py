"""Looks at the server once a second: how it is, and what its models take."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Protocol

from triptych.errors import ServerError, TriptychError

from .forms import Form, forms_of
from .health import Health, State, Watcher

LOOK_S = 1.0


class Looks(Protocol):
    """What of `AsyncClient` the monitor needs."""

    async def stats(self) -> dict[str, float]: ...

    async def ready(self) -> bool: ...

    async def models(self) -> dict[str, Any]: ...


class Monitor:
    """The server's health and forms, kept up to date while `run` runs. The versions grow with every change."""

    def __init__(self, client: Looks, watcher: Watcher | None = None, every_s: float = LOOK_S) -> None:
        self._client, self._every_s = client, every_s
        self.watcher = watcher or Watcher()
        self.forms: Mapping[str, Form] = {}
        self.version = self.forms_version = 0
        self._usable = asyncio.Event()

    @property
    def health(self) -> Health:
        return self.watcher.health

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._every_s)

    async def look(self) -> Health:
        """Look once."""
        before = self.health
        try:
            stats = await self._client.stats()
            if not await self._client.ready():
                raise ServerError("some of its models are not loaded")
            health = self.watcher.found(stats)
            if not self.forms or health.state is State.RESTARTED or not before.usable:
                self._take(forms_of(await self._client.models()))
        except TriptychError as error:
            health = self.watcher.missed(error)
        if health.usable:
            self._usable.set()
        else:
            self._usable.clear()
        self.version += health != before
        return health

    async def look_for_adapters(self) -> None:
        """Ask which adapters there are by now, if any are served; what is known stays where the server does not answer."""
        if any(form.adapters is not None for form in self.forms.values()):
            with contextlib.suppress(TriptychError):
                self._take(forms_of(await self._client.models()))

    def _take(self, forms: Mapping[str, Form]) -> None:
        changed, self.forms = forms != self.forms, forms  # in any case: adapters are no difference
        self.version += changed
        self.forms_version += changed

    async def usable(self, timeout_s: float) -> bool:
        """Wait until the server can be asked; False when the time ran out first."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._usable.wait(), timeout_s)
        return self._usable.is_set()

    def lost(self, error: TriptychError) -> None:
        """Take that a picture found the server gone: no need to wait for the next look."""
        before = self.health
        self.version += self.watcher.missed(error) != before
        self._usable.clear()
