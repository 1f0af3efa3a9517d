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

from .options import LOCAL, Url, model_option, spelled

CASCADE_SAMPLER = "DDPMWuerstchen"
Shown = tuple[dict[str, Any], list[str]]
HEADER = ("sampler", "A1111", "diffusers", "steps", "schedules")


def samplers(
    url: Url = LOCAL,
    model: Annotated[str | None, model_option(help="Of this model; default: sdxl, or else the one served.")] = None,
    build: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Read a folder made by `triptych export`, ask no server.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List samplers and schedules, with the names that other tools have for them."""
    chosen = _choose(_of_build(build) if build else _of_server(url), model)
    try:
        facts, lines = SHOWN[chosen["family"]](chosen["model"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if build:
            raise _not_a_build(build, f"a manifest of another version ({error!r})") from None
        raise ServerError(f"the answer is not this version's ({error!r})") from None
    sys.stdout.write((json.dumps(facts) if as_json else "\n".join(lines)) + "\n")


def _of_server(url: str) -> dict[str, Any]:
    with Client(url) as client:
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
        return served.get("sdxl") or next(iter(served.values()), None)
    if model not in served:
        raise invalid("--model", spelled(model), ", ".join(map(spelled, served)))
    return served[model]


def _of_sdxl(card: Mapping[str, Any]) -> Shown:
    chosen = {name: card[name] for name in ("default_sampler", "default_schedule", "samplers")}
    return chosen, list(_table(chosen))


def _of_cascade(card: Mapping[str, Any]) -> Shown:
    steps = {
        "prior_num_inference_steps": {
            "default": card["default_prior_num_inference_steps"],
            "max": card["prior_table"]["max_steps"],
        },
        "num_inference_steps": {
            "default": card["default_num_inference_steps"],
            "max": card["decoder_table"]["max_steps"],
        },
    }
    prior, decoder = (f"1 to {given['max']} steps (default: {given['default']})" for given in steps.values())
    line = f"Stable Cascade has one sampler, {CASCADE_SAMPLER}: {prior} in Stage C, {decoder} in Stage B"
    return {"sampler": CASCADE_SAMPLER, "steps": steps}, [line]


# Family → what its card says of samplers, as JSON and as lines.
SHOWN = {"sdxl": _of_sdxl, "stable_cascade": _of_cascade}


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
