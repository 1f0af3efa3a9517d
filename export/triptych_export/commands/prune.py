"""`triptych prune`: fewer engines in the store that exports share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def prune(
    keep_gb: Annotated[float, typer.Option(min=0, help="Gigabytes that may stay, those used last.")],
    engine_store: Annotated[
        Path | None, typer.Option(help="The folder that keeps engines; default in the user's cache.")
    ] = None,
) -> None:
    """Remove TensorRT engines that were used longest ago; prints what went. Builds keep theirs."""
    try:
        from triptych_export.tensorrt.store import EngineStore, default_store
    except ImportError as error:
        typer.echo(f"triptych prune: {error.name} is missing; pip install 'triptych[export]'", err=True)
        raise typer.Exit(1) from None

    folder = engine_store or default_store()
    if not folder.is_dir():
        typer.echo(
            f"triptych prune: {folder}: no such folder; `triptych export --target tensorrt-rtx` makes it", err=True
        )
        raise typer.Exit(1)
    for removed in EngineStore(folder).prune(int(keep_gb * 1e9)):
        typer.echo(removed)
