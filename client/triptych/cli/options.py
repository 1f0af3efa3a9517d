"""Options that several commands share."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from triptych_contract.families import FAMILIES

Url = Annotated[str, typer.Option(envvar="TRIPTYCH_URL", help="The server's gRPC address.")]
LOCAL = "localhost:8001"
# The panel of `--help` for where pictures come from and go to.
OUTPUT = "Output and server"


def spelled(name: str) -> str:
    """An input's or a model's name as the command line spells it."""
    return name.replace("_", "-")


MODELS = tuple(map(spelled, FAMILIES))


def _ensemble(name: str) -> str:
    if (model := name.replace("-", "_")) not in FAMILIES:
        raise typer.BadParameter(f"{name!r} given; legal: {', '.join(MODELS)}")
    return model


# `--model`, as hyphens or underscores spell it; the command has the ensemble's name.
model_option = partial(typer.Option, parser=_ensemble, metavar=f"[{'|'.join(MODELS)}]")
