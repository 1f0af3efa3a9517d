"""`triptych verify`: whether this server gives the same bytes whatever else it is doing."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

from triptych.async_client import AsyncClient
from triptych.errors import ServerError

from .options import LOCAL, Url

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
    sys.stdout.write((json.dumps(report) if as_json else "\n".join(_words(report))) + "\n")
    raise typer.Exit(0 if report["equal"] else 1)


async def _verify(url: str, timeout: float | None) -> dict[str, Any]:
    async with AsyncClient(url, timeout=timeout) as client:
        verified, described = await client.verify(), await client.describe()
        try:
            denoisers = verified["denoisers"]
            invariant = [bool(denoiser["batch_invariant"] and denoiser["batches"]) for denoiser in denoisers.values()]
            requests = mixed_requests(described["model"])
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ServerError(f"the answer is not this version's ({error!r})") from None
        differing = await _differing(client, requests)
    pipeline = {"requests": len(requests), "equal": not differing, "differing": differing}
    return {"denoisers": denoisers, "pipeline": pipeline, "equal": all(invariant) and not differing}


def mixed_requests(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Small requests that have as little in common as `model` allows."""
    names = sorted(model["samplers"])
    return [_request(k, names[k * len(names) // REQUESTS], model) for k in range(REQUESTS)]


def _request(k: int, sampler: str, model: Mapping[str, Any]) -> dict[str, Any]:
    schedules = model["samplers"][sampler]["schedules"]
    schedule = list(schedules)[k % len(schedules)]
    smallest = -(-model["min_size"] // model["size_multiple"]) * model["size_multiple"]
    return {
        "prompt": f"a 3d render of a {SUBJECTS[k % len(SUBJECTS)]}",
        "seed": 1000 + k,
        "num_inference_steps": min(2 + k % 5, schedules[schedule]["max_steps"]),
        "guidance_scale": 5.0 if k % 2 else 0.0,
        "sampler": sampler,
        "schedule": schedule,
        # Two sizes, so that there are requests that cannot share a batch as well.
        **({"height": smallest, "width": smallest} if k % 4 else {}),
    }


async def _differing(client: AsyncClient, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The requests whose pictures differ when they are sent all at once from when each is alone."""
    # Tenants that nobody has had: what the server's cache holds is never another tenant's answer.
    alone, together = (f"verify-{secrets.token_hex(8)}" for _ in range(2))
    first = [(await client.generate(**request, tenant=alone)).data for request in requests]
    jobs = [client.submit(**request, tenant=together) for request in requests]
    second = [image.data for image in await asyncio.gather(*(job.get() for job in jobs))]
    return [request for request, one, other in zip(requests, first, second, strict=True) if one != other]


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
    which = ", ".join(f"{request['sampler']}/{request['schedule']}" for request in pipeline["differing"])
    return f"DIFFERS  pipeline: of {pipeline['requests']} mixed requests, one by one and all at once, {which}"
