"""One server, all of its models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from triptych.async_client import AsyncClient
from triptych_contract.families import FAMILIES


@asynccontextmanager
async def connected(**client: Any) -> AsyncIterator[dict[str, AsyncClient]]:
    """A client for each ensemble, by its name; none connects before it is used."""
    async with AsyncExitStack() as stack:
        yield {model: await stack.enter_async_context(AsyncClient(**client, model=model)) for model in FAMILIES}
