"""`triptych samplers`: what a server, or a build folder, can sample with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.errors import ServerError, invalid
from triptych.sync_client import Client

from .options import LOCAL, Url

HEADER = ("sampler", "A1111", "diffusers", "steps", "schedules")


def samplers(
    url: Url = LOCAL,
    build: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Read a folder made by `triptych export`, ask no server.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List samplers and schedules, with the names that other tools have for them."""
    if build:
        model = _of_build(build)
    else:
        with Client(url) as client:
            model = client.describe()["model"]
    try:
        chosen = {name: model[name] for name in ("default_sampler", "default_schedule", "samplers")}
        text = json.dumps(chosen) if as_json else "\n".join(_table(chosen))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if build:
            raise _not_a_build(build, f"a manifest of another version ({error!r})") from None
        raise ServerError(f"the answer is not this version's ({error!r})") from None
    sys.stdout.write(text + "\n")


def _of_build(build: Path) -> Any:
    try:
        return json.loads((build / "manifest.json").read_text("utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_a_build(build, f"a folder without a readable manifest.json ({error})") from None


def _not_a_build(build: Path, what: str) -> Exception:
    return invalid("build", f"{build}, {what}", "a folder that `triptych export` made")


def _table(model: Mapping[str, Any]) -> Iterator[str]:
    rows = [HEADER, *(_row(name, card, model) for name, card in model["samplers"].items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    yield ""
    yield "* what a request gets that names none; steps: the most"


def _row(name: str, card: Mapping[str, Any], model: Mapping[str, Any]) -> Sequence[str]:
    most = max(table["max_steps"] for table in card["schedules"].values())
    default = model["default_sampler"] == name
    schedules = (
        _schedule(schedule, table, most, default and model["default_schedule"] == schedule)
        for schedule, table in card["schedules"].items()
    )
    return f"{name} *" if default else name, card["a1111"], card["diffusers"], str(most), ", ".join(schedules)


def _schedule(name: str, table: Mapping[str, Any], most: int, default: bool) -> str:
    limits = [f"{table['max_steps']} steps"] * (table["max_steps"] < most) + ["no mask"] * (not table["inpaint"])
    return name + " *" * default + (f" ({', '.join(limits)})" if limits else "")
