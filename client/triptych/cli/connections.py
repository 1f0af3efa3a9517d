"""One server, all of its models; and how long a command waits for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from triptych.async_client import AsyncClient
from triptych.errors import Overloaded, ServerUnavailable
from triptych.patience import Patience
from triptych_contract.families import FAMILIES

from .shown import note

# Seconds that a command without `--timeout` waits where nobody answers, and where a server loads its models.
ABSENT_S, LOADING_S = 3.0, 600.0


def patient(*, quiet: bool = False) -> Patience:
    """Give the patience of a command; each reason to wait is said once, unless `quiet`."""
    told: set[str] = set()

    def tell(error: ServerUnavailable, seconds: float) -> None:
        why = _why(error)
        if not quiet and why not in told:
            note(f"{why}; waiting for up to {seconds:.0f} s …")
        told.add(why)

    return Patience(absent_s=ABSENT_S, loading_s=LOADING_S, tell=tell)


def _why(error: ServerUnavailable) -> str:
    if isinstance(error, Overloaded):
        return "the queue is full"
    return "the server loads its models" if error.loading else "no server answers"


@asynccontextmanager
async def connected(**client: Any) -> AsyncIterator[dict[str, AsyncClient]]:
    """A client for each ensemble, by its name; none connects before it is used."""
    client = {"patience": patient(), **client}
    async with AsyncExitStack() as stack:
        yield {model: await stack.enter_async_context(AsyncClient(**client, model=model)) for model in FAMILIES}
