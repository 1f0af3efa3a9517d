"""The metrics of all servers as one page: each sample says whose it is."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import Any

import httpx2

from .directory import Facts

SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})? (.+)")
FAMILY = re.compile(r"# (?:HELP|TYPE) (\S+)")
TIMEOUT_S = 4.0
ANSWERED = "triptych_cluster_answered"
CONTENT_TYPE = "text/plain; version=0.0.4"


async def page(servers: Mapping[str, Facts]) -> str:
    """Ask every server for its metrics and write one page: `instance` and `replica` are a server's name, `node` is Ray's.

    A scraper has to keep `instance` as it is (Prometheus' `honor_labels`).

    Args:
        servers: as the directory has them, by name.
    """
    async with httpx2.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
        pages = await asyncio.gather(*(_asked(client, one) for one in servers.values()))
    labels = [{"instance": name, "node": one["node"], "replica": name} for name, one in servers.items()]
    answered = [f"{ANSWERED}{{{_written(one)}}} {int(bool(text))}" for one, text in zip(labels, pages, strict=True)]
    own = [f"# HELP {ANSWERED} Whether a server of the cluster gave its metrics", f"# TYPE {ANSWERED} gauge"]
    return "\n".join([*own, *answered, *merged(zip(labels, pages, strict=True))]) + "\n"


def merged(pages: Iterable[tuple[Mapping[str, str], str]]) -> list[str]:
    """Put pages with their labels together: lines of one family stay together, as the format asks."""
    families: dict[str, dict[str, None]] = {}
    for labels, text in pages:
        family = ""
        for line in text.splitlines():
            if about := FAMILY.match(line):
                family = about[1]
            elif not (found := SAMPLE.fullmatch(line)):
                continue
            else:
                line = f"{found[1]}{{{','.join(filter(None, (found[2], _written(labels))))}}} {found[3]}"
            families.setdefault(family, {})[line] = None
    return [line for lines in families.values() for line in sorted(lines, key=_place)]


def _place(line: str) -> int:
    """Put a family's words before its samples, which stay in their order."""
    return not line.startswith("#")


def _written(labels: Mapping[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in labels.items())


async def _asked(client: httpx2.AsyncClient, server: Facts) -> str:
    try:
        answer = await client.get(server["metrics"])
        return answer.text if answer.is_success else ""
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return ""


def application(servers: Any) -> Any:
    """Make the ASGI application with /metrics.

    Args:
        servers: gives them when awaited, as the directory has them.
    """
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    async def metrics(_: Any) -> Response:
        return Response(await page(await servers()), media_type=CONTENT_TYPE)

    return Starlette(routes=[Route("/metrics", metrics)])
