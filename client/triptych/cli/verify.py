"""`triptych verify`: whether this server gives the same bytes whatever else it is doing."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console

from triptych.async_client import AsyncClient
from triptych.errors import of_another_version
from triptych_contract.cards import CardError, ModelCard
from triptych_contract.families import family_of, read_card
from triptych_contract.family import Family

from .connections import connected
from .options import LOCAL, Url
from .shown import say, say_json

REQUESTS = 8
SUBJECTS = ("apple", "rocket", "fox", "penguin")


def verify(
    url: Url = LOCAL,
    timeout: Annotated[float | None, typer.Option(min=1, help="Seconds that each check may take.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check that pictures do not depend on what else is drawn; exit 1 where they do. May take minutes."""
    with Console(stderr=True).status("comparing batches of every size …"):
        report = asyncio.run(_verify(url, timeout))
    if as_json:
        say_json(report)
    else:
        say(*_words(report))
    raise typer.Exit(0 if report["equal"] else 1)


async def _verify(url: str, timeout: float | None) -> dict[str, Any]:
    async with connected(url=url, timeout=timeout) as clients:
        client = next(iter(clients.values()))  # the server is asked, not one of its models
        verified, served = await client.verify(), await client.models()
        try:
            denoisers = verified["denoisers"]
            invariant = [bool(denoiser["batch_invariant"] and denoiser["batches"]) for denoiser in denoisers.values()]
            requests = _requests(clients, served)
        except (AttributeError, CardError, LookupError, TypeError, ValueError) as error:
            raise of_another_version(error) from None
        differing = await _differing(requests)
    pipeline = {"requests": len(requests), "equal": not differing, "differing": differing}
    return {"denoisers": denoisers, "pipeline": pipeline, "equal": all(invariant) and not differing}


class Asked(NamedTuple):
    """A request and the client of its model."""

    client: AsyncClient
    parameters: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"model": self.client.model, **self.parameters}


def _requests(clients: Mapping[str, AsyncClient], served: Mapping[str, Any]) -> list[Asked]:
    if not served:
        raise ValueError("no models")
    models = {ensemble: read_card(described) for ensemble, described in served.items()}
    return [
        Asked(clients[ensemble], request)
        for ensemble, (family, card) in models.items()
        for request in mixed_requests(family, card)
    ]


def mixed_requests(family: Family, card: ModelCard) -> list[dict[str, Any]]:
    """Give small requests that have as little in common as a model allows."""
    smallest = family.settings.sides(card, {})[0]
    return [
        {
            "prompt": f"a 3d render of a {SUBJECTS[k % len(SUBJECTS)]}",
            "seed": 1000 + k,
            **family.mixed(k, REQUESTS, card),
            **_size(k, smallest),
        }
        for k in range(REQUESTS)
    ]


def _size(k: int, smallest: int) -> dict[str, int]:
    """One of two sizes, so that there are requests that cannot share a batch as well."""
    return {"height": smallest, "width": smallest} if k % 4 else {}


async def _differing(requests: Sequence[Asked]) -> list[dict[str, Any]]:
    """The requests whose pictures differ when they are sent all at once from when each is alone."""
    # Tenants that nobody has had: what the server's cache holds is never another tenant's answer.
    alone, together = (f"verify-{secrets.token_hex(8)}" for _ in range(2))
    first = [(await asked.client.generate(**asked.parameters, tenant=alone)).data for asked in requests]
    jobs = [asked.client.submit(**asked.parameters, tenant=together) for asked in requests]
    second = [image.data for image in await asyncio.gather(*(job.get() for job in jobs))]
    return [asked.to_json() for asked, one, other in zip(requests, first, second, strict=True) if one != other]


def _words(report: Mapping[str, Any]) -> Iterator[str]:
    for name, denoiser in report["denoisers"].items():
        batches = ", ".join(map(str, denoiser["batches"]))
        if denoiser["batch_invariant"]:
            yield f"equal    {name}: every row has the same bytes in batches of {batches}"
        else:
            yield f"DIFFERS  {name}: a row's bytes depend on its batch, of {batches} rows"
    yield _pipeline_words(report["pipeline"])
    yield (
        "The same request gives the same bytes here, whatever else is drawn."
        if report["equal"]
        else "The same request can give other bytes here when other pictures are drawn beside it."
    )


def _pipeline_words(pipeline: Mapping[str, Any]) -> str:
    if pipeline["equal"]:
        return f"equal    pipeline: {pipeline['requests']} mixed requests, one by one and all at once"
    which = ", ".join(family_of(request["model"]).called(request) for request in pipeline["differing"])
    return f"DIFFERS  pipeline: of {pipeline['requests']} mixed requests, one by one and all at once, {which}"
