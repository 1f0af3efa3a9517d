"""`triptych workload`: write a file of requests with their times, for `triptych simulate` and `triptych bench`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.errors import invalid
from triptych_contract.families import DEFAULT


def workload(
    output: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it: JSON lines.")],
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Number of requests.")] = 1000,
    rate: Annotated[float, typer.Option(min=1e-6, help="Requests per second, in the mean.")] = 1.0,
    arrivals: Annotated[str, typer.Option(metavar="[poisson|bursts|constant]", help="When they come.")] = "poisson",
    choose: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT=VALUE,…", help="Values of an input, each as likely; may be given for several inputs."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed makes the same file.")] = 0,
    model: Annotated[str, typer.Option(help="The ensemble that they are for.")] = DEFAULT.name,
) -> None:
    """Write requests that can be sent again: what each asks for, and when it comes. Prints the path."""
    from triptych.request import check
    from triptych_lab.workload import Mix, make, save

    mix = Mix(dict(map(_choice, choose))) if choose else Mix()
    check(model, {name: values[0] for name, values in mix.choices.items()})
    save(output, make(mix, rate=rate, count=n, arrivals=arrivals, seed=seed))
    sys.stdout.write(f"{output}\n")


def _choice(text: str) -> tuple[str, Sequence[Any]]:
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise invalid("--choose", repr(text), "INPUT=VALUE,VALUE,… as num_inference_steps=4,20,50")
    return name.replace("-", "_"), tuple(map(_value, values.split(",")))


def _value(text: str) -> Any:
    """Read a value as JSON if it is, as a number; else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
