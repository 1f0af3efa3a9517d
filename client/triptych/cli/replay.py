"""`triptych replay`: make pictures again from their own receipts, and say whether the bytes match."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.async_client import AsyncClient
from triptych.receipts import differences, read_receipt, request_of


def replay(
    files: Annotated[list[Path], typer.Argument(help="Pictures that Triptych made.", exists=True, dir_okay=False)],
    url: Annotated[str, typer.Option(envvar="TRIPTYCH_URL", help="The server's gRPC address.")] = "localhost:8001",
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds that each picture may take.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a picture on stdout.")] = False,
) -> None:
    """Make pictures again and compare the bytes; exit 1 where any differs."""
    verdicts = asyncio.run(_replay(files, {"url": url, "timeout": timeout}))
    for verdict in verdicts:
        sys.stdout.write((json.dumps(verdict) if as_json else _words(verdict)) + "\n")
    raise typer.Exit(0 if all(verdict["equal"] for verdict in verdicts) else 1)


async def _replay(files: list[Path], client: dict[str, Any]) -> list[dict[str, Any]]:
    receipts = [read_receipt(file) for file in files]
    async with AsyncClient(**client) as connected:
        jobs = [connected.submit(**request_of(receipt)) for receipt in receipts]
        images = await asyncio.gather(*(job.get() for job in jobs))
    return [
        {
            "file": str(file),
            "equal": image.data == file.read_bytes(),
            "differences": differences(receipt, image.receipt),
        }
        for file, receipt, image in zip(files, receipts, images, strict=True)
    ]


def _words(verdict: dict[str, Any]) -> str:
    if verdict["equal"]:
        return f"equal    {verdict['file']}"
    because = "; ".join(verdict["differences"]) or "the receipts agree: the file was changed after it was made"
    return f"DIFFERS  {verdict['file']}: {because}"
