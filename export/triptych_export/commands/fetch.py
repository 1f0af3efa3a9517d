"""`triptych fetch`: published weights into folders that `triptych export` reads."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.errors import invalid
from triptych_export.catalog import CATALOGUES, MODELS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

    from triptych_export.fetching import Fetched
    from triptych_export.fetching.files import Told
    from triptych_export.fetching.record import Record
    from triptych_export.published import Model

Name = Enum("Name", {name: name for name in MODELS}, type=str)  # type: ignore[misc] # the catalogue names them


def fetch(
    models: Annotated[list[Name], typer.Argument(help="What to fetch; what needs a prior brings it.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Each model gets a folder there; default: your data folder."
        ),
    ] = None,
    prior: Annotated[
        bool, typer.Option("--prior/--no-prior", help="Bring the prior of a model that needs one.")
    ] = True,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", "--accept-license", help="Accept the licences without being asked.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", envvar="HF_HUB_OFFLINE", help="No network: check what is there.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a model on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Fetch weights from the Hugging Face hub, checked by SHA-256; prints their folders."""
    from rich.console import Console

    chosen = _chosen([name.value for name in models], prior)
    console = Console(stderr=True, quiet=quiet, highlight=False, markup=False, soft_wrap=True)
    fetched = _fetch(chosen, (output or data_folder()).expanduser(), console, offline, accept_licence)
    for one in fetched:
        sys.stdout.write((json.dumps(_to_json(one)) if as_json else str(one.folder)) + "\n")
    sys.stdout.flush()
    console.print(_next_step(fetched))


def data_folder() -> Path:
    """`$XDG_DATA_HOME/triptych/weights`, by default `~/.local/share/triptych/weights`."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "triptych" / "weights"


def _chosen(names: Sequence[str], prior: bool) -> list[Model]:
    """The models, each once; a prior before what needs it, as `triptych export` takes them."""
    priors = {model.prior for model in MODELS.values() if model.prior}
    if not prior and (named := priors & {*names}):
        raise invalid("--no-prior", f"{min(named)} and --no-prior", "one of them")
    brought = [(MODELS[name].prior, name) if MODELS[name].prior and prior else (name,) for name in names]
    return [MODELS[name] for name in dict.fromkeys(name for group in brought for name in group)]


def _fetch(
    models: Sequence[Model], output: Path, console: Console, offline: bool, accept_licence: bool
) -> list[Fetched]:
    from triptych_export.fetching import fetch as bring
    from triptych_export.fetching import verify
    from triptych_export.fetching.hub import Hub

    with _progress(console) as progress:
        if offline:
            return verify(models, output, progress)
        return bring(models, output, Hub(), lambda records: _consent(records, accept_licence, progress), progress)


def _consent(records: Sequence[Record], accept: bool, progress: _Progress) -> None:
    """Show each licence that was not accepted before, and ask; raises where the answer is no."""
    from triptych_export.fetching import FetchError
    from triptych_export.fetching.licences import Licences

    licences = Licences.of_user()
    asked = {_licence(record): record for record in records if not licences.accepted(record)}
    if asked and not accept and not sys.stdin.isatty():
        raise FetchError("; ".join(asked) + ": not accepted yet; read it, then give --accept-licence")
    for words, record in asked.items():
        if not (accept or progress.ask(words)):
            raise FetchError(f"{record.model}: its licence was not accepted; nothing was fetched")
        if accept:
            progress.say(f"accepted: {words}")
        licences.accept(record)


def _licence(record: Record) -> str:
    note = f" ({record.licence.note})" if record.licence.note else ""
    return f"{record.model}: {record.licence.name}{note}, {record.licence.url}"


def _to_json(one: Fetched) -> dict[str, object]:
    return {
        "model": one.model.name,
        "path": str(one.folder),
        "repo": one.record.repo,
        "revision": one.record.revision,
        "pinned": one.model.revision is not None,
        "licence": {"name": one.record.licence.name, "url": one.record.licence.url},
        "files": len(one.record.files),
        "bytes": one.record.size,
        "fetched": list(one.fetched),
    }


def _size(size: int) -> str:
    if size < 1e6:
        return f"{size} bytes"
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def _next_step(fetched: Sequence[Fetched]) -> str:
    """What people do next, with the folders that were printed."""
    folders = {one.model.name: shlex.quote(str(one.folder)) for one in fetched}
    total = f"{_size(sum(one.record.size for one in fetched))}, every file as the hub states it"
    arguments = [catalogue.exported(folders) for catalogue in reversed(CATALOGUES)]
    return next((f"{total}\nnext: triptych export {given}" for given in arguments if given), total)


class _Progress:
    """On a terminal one line that changes, elsewhere a line a file."""

    def __init__(self, console: Console, bars: Bars) -> None:
        self._console, self._bars = console, bars

    def say(self, text: str) -> None:
        self._console.print(text)

    def ask(self, words: str) -> bool:
        self._bars.stop()  # a bar would draw over the question
        try:
            sys.stderr.write(f"{words}\nDo you accept it? [y/N] ")  # typer's own question writes to stdout as well
            sys.stderr.flush()
            return sys.stdin.readline().strip().lower() in ("y", "yes")
        finally:
            self._bars.start()

    def task(self, what: str, total: int, done: int = 0) -> Told:
        if not self._console.is_terminal:
            rest = f", {_size(done)} of it are there" if done else ""
            self._console.print(f"{what}, {_size(total)}{rest}")
        for before in self._bars.task_ids:
            self._bars.remove_task(before)
        task = self._bars.add_task(what, total=total, completed=done)
        return lambda amount: self._bars.update(task, advance=amount)


@contextmanager
def _progress(console: Console) -> Iterator[_Progress]:
    from rich.progress import DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.percentage:3.0f}%"),  # the names are long: a bar would wrap on 80 columns
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, redirect_stdout=False, transient=True, disable=not console.is_terminal
    ) as bars:
        yield _Progress(console, bars)
