"""The commands: functions that this package and the rooms beside it name in the entry points `triptych.commands`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, distribution
from typing import Annotated

import typer

GROUP = "triptych.commands"
# The package that a command comes from → whom it is for, in the order of `--help`.
PANELS = {
    "triptych": "Draw pictures",
    "triptych_page": "Draw pictures",
    "triptych_server": "Run a server",
    "triptych_export": "Make builds",
    "triptych_lab": "Check, measure, plan",
}


def commands() -> Mapping[str, EntryPoint]:
    """Give the entry point of every command by name, in the order of `--help`; nothing is imported."""
    found = [entry for entry in distribution("triptych").entry_points if entry.group == GROUP]
    return {entry.name: entry for entry in sorted(found, key=lambda entry: [*PANELS].index(_package(entry)))}


def app(names: Iterable[str] = ()) -> typer.Typer:
    """Make the command line, of these commands only where some are named: the imports of all take three times those of one."""
    known = commands()
    made = typer.Typer(
        name="triptych",
        help="Text-to-image serving on NVIDIA Triton.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    made.callback()(_root)
    for entry in [known[name] for name in names] or known.values():
        made.command(entry.name, rich_help_panel=PANELS[_package(entry)])(entry.load())
    return made


def _package(entry: EntryPoint) -> str:
    return entry.module.split(".")[0]


def _show_version(asked: bool) -> None:
    if asked:
        from triptych import __version__

        typer.echo(f"triptych {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass
