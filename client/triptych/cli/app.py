"""The commands."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

import typer

# Each is a function of its name in the module of its name.
COMMANDS = (
    "generate",
    "replay",
    "samplers",
    "verify",
    "serve",
    "demo",
    "export",
    "prune",
    "fetch",
    "doctor",
    "bench",
    "workload",
    "simulate",
    "ui",
)


def app(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line with these commands only: the imports of one are a tenth of a second, those of all three."""
    made = typer.Typer(
        name="triptych",
        help="Text-to-image serving on NVIDIA Triton.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    made.callback()(_no_options)  # or a command that is alone would lose its name
    for name in names:
        made.command()(getattr(import_module(f"triptych.cli.{name}"), name))
    return made


def _no_options() -> None:
    pass
