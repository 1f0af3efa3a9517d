"""The commands: functions that this package and the rooms beside it name in the entry points `triptych.commands`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution
from typing import Annotated

import typer
from rich.markup import escape

# A function, or several under one name.
Command = Callable[..., None] | typer.Typer
GROUP = "triptych.commands"
# Whose commands these are. Looking through all that is installed would take 50 ms.
DISTRIBUTIONS = ("triptych", "triptych-server")
# Command of `triptych-server` → the extra of `triptych` that brings all that it needs.
EXTRAS = {
    "ui": "ui",
    "api": "api",
    "serve": "server",
    "demo": "server",
    "cluster": "cluster",
    "export": "export",
    "fetch": "fetch",
    "prune": "export",
    "doctor": "server",
    "bench": "bench",
    "workload": "server",
    "simulate": "server",
}
# The package that a command comes from → whom it is for, in the order of `--help`.
PANELS = {
    "triptych": "Draw pictures",
    "triptych_page": "Draw pictures",
    "triptych_api": "Run a server",
    "triptych_server": "Run a server",
    "triptych_cluster": "Run a server",
    "triptych_export": "Make builds",
    "triptych_lab": "Check, measure, plan",
}


def commands() -> Mapping[str, EntryPoint]:
    """Give the entry point of every installed command by name, in the order of `--help`; nothing is imported."""
    found = [entry for name in DISTRIBUTIONS for entry in _entry_points(name) if entry.group == GROUP]
    return {entry.name: entry for entry in sorted(found, key=lambda entry: [*PANELS].index(_package(entry)))}


def app(names: Iterable[str] = ()) -> typer.Typer:
    """Make the command line, of these commands only where some are named: the imports of all take three times those of one.

    Raises:
        ModuleNotFoundError: a named command is not installed, or a module that it imports.
    """
    known = commands()
    loaded = {name: _load(known.get(name)) for name in names} or _loadable(known)
    made = typer.Typer(
        name="triptych",
        help="Text-to-image serving on NVIDIA Triton.",
        epilog=_elsewhere(name for name in EXTRAS if name not in loaded),
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    made.callback()(_root)
    for name, command in loaded.items():
        panel = PANELS[_package(known[name])]
        if isinstance(command, typer.Typer):
            made.add_typer(command, name=name, rich_help_panel=panel)
        else:
            made.command(name, rich_help_panel=panel)(command)
    return made


def _entry_points(name: str) -> Iterable[EntryPoint]:
    try:
        return distribution(name).entry_points
    except PackageNotFoundError:
        return ()


def _load(entry: EntryPoint | None) -> Command:
    if entry is None:  # the client's own are always there
        raise ModuleNotFoundError(name=DISTRIBUTIONS[-1])
    command: Command = entry.load()
    return command


def _loadable(known: Mapping[str, EntryPoint]) -> dict[str, Command]:
    """Load every command but those that need an extra which is not installed."""
    loaded = {}
    for name, entry in known.items():
        with suppress(ModuleNotFoundError):
            loaded[name] = _load(entry)
    return loaded


def _elsewhere(names: Iterable[str]) -> str | None:
    """Say for `--help` which extras bring the commands that are not here."""
    by_extra: dict[str, list[str]] = {}
    for name in names:
        by_extra.setdefault(EXTRAS[name], []).append(name)
    said = [f"{', '.join(names)}: {escape(f'triptych[{extra}]')}" for extra, names in by_extra.items()]
    return f"Not installed here: {'; '.join(said)}" if said else None


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
