"""`triptych samplers`: what a server, or a build folder, can sample with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.errors import invalid, of_another_version
from triptych.sync_client import Client
from triptych_contract.cards import CardError
from triptych_contract.families import DEFAULT, read_card

from .connections import patient
from .options import LOCAL, Url, model_option, spelled
from .shown import say, say_json


def samplers(
    url: Url = LOCAL,
    model: Annotated[
        str | None, model_option(help=f"Of this model; default: {spelled(DEFAULT.name)}, or else the one served.")
    ] = None,
    build: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Read a folder made by `triptych export`, ask no server.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds to wait for a server that loads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List samplers and schedules, with the names that other tools have for them."""
    chosen = _choose(_of_build(build) if build else _of_server(url, timeout), model)
    try:
        family, card = read_card(chosen)
    except CardError as error:
        if build:
            raise _not_a_build(build, f"a manifest of another version ({error})") from None
        raise of_another_version(error) from None
    found = family.samplers(card)
    if as_json:
        say_json(found.facts)
    else:
        say(*found.lines)


def _of_server(url: str, timeout: float | None) -> dict[str, Any]:
    with Client(url, timeout=timeout, patience=patient()) as client:
        return client.models()


def _of_build(build: Path) -> dict[str, Any]:
    """A build's manifest as a server of that build alone would describe it."""
    try:
        manifest = json.loads((build / "manifest.json").read_text("utf-8"))
        return {manifest["family"]: manifest}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_a_build(build, f"a folder without a readable manifest.json ({error})") from None


def _not_a_build(build: Path, what: str) -> Exception:
    return invalid("build", f"{build}, {what}", "a folder that `triptych export` made")


def _choose(served: Mapping[str, Any], model: str | None) -> Any:
    if model is None:
        return served.get(DEFAULT.name) or next(iter(served.values()), None)
    if model not in served:
        raise invalid("--model", spelled(model), ", ".join(map(spelled, served)))
    return served[model]
