"""Fetching: plan every model, ask for consent, look for room, then bring in what is missing or differs, file by file."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from triptych_export.fetching.errors import FetchError
from triptych_export.fetching.files import HubFile, Told, fault
from triptych_export.fetching.hub import Listing
from triptych_export.fetching.record import Record
from triptych_export.fetching.selection import wanted
from triptych_export.published import Model

INCOMPLETE = ".incomplete"
SPARE_BYTES = 64_000_000  # for the record and what else writes to that disk meanwhile


class Source(Protocol):
    """Where the files are: a hub."""

    def listing(self, model: Model) -> Listing: ...

    def download(self, model: Model, commit: str, file: HubFile, partial: Path, told: Told) -> None: ...


class FetchProgress(Protocol):
    """Tells a person what is being done."""

    def say(self, text: str) -> None: ...

    def task(self, what: str, total: int, done: int = 0) -> Told:
        """Begin something of `total` bytes; what is returned takes the bytes as they are done."""
        ...


@dataclass(frozen=True)
class Fetched:
    """A folder that is complete and checked; `fetched` are the paths that this run brought in."""

    model: Model
    folder: Path
    record: Record
    fetched: tuple[str, ...] = ()


@dataclass(frozen=True)
class Download:
    """What is to be done for one model: its record, the files to bring in, and those that no longer belong there."""

    model: Model
    folder: Path
    record: Record
    needed: tuple[HubFile, ...]
    stale: tuple[str, ...] = ()

    def partial(self, file: HubFile) -> Path:
        """Where a file grows until it is whole; by content, so that another file's beginning is never gone on with."""
        return self.folder / INCOMPLETE / file.digest

    def missing_bytes(self) -> int:
        return sum(file.size - min(file.size, _size(self.partial(file))) for file in self.needed)


def free_bytes(folder: Path) -> int:
    """Bytes that the disk of a folder, which may not exist yet, has left."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def fetch(
    models: Sequence[Model],
    output: Path,
    source: Source,
    consent: Callable[[Sequence[Record]], None],
    progress: FetchProgress,
    *,
    free: Callable[[Path], int] = free_bytes,
) -> list[Fetched]:
    """Bring `models` into folders of `output`, each named as its model; what is there and right is kept.

    Args:
        consent: given the records that files will be fetched for; raises where a licence is not accepted.
        free: bytes left on a folder's disk.

    Raises:
        FetchError: the hub refuses or cannot be reached, a file differs from what it states, the disk is too small.
    """
    downloads = [_planned(model, output / model.name, source, progress) for model in models]
    consent([download.record for download in downloads if download.needed])
    _require_room(downloads, output, free(output))
    return [_carry_out(download, source, progress) for download in downloads]


def verify(models: Sequence[Model], output: Path, progress: FetchProgress) -> list[Fetched]:
    """Check, without a network, that `models` are in `output`, every byte of them.

    Raises:
        FetchError: a folder is missing, or files of it are missing or differ; all are named.
    """
    return [_verify(model, output / model.name, progress) for model in models]


def _verify(model: Model, folder: Path, progress: FetchProgress) -> Fetched:
    record = Record.read(folder)
    if record is None or not record.is_of(model):
        what = "not fetched yet" if record is None else f"of another revision, {record.revision}"
        raise FetchError(f"{folder}: {what}; run `triptych fetch {model.name}` without --offline")
    if faults := _faults(folder, record, progress):
        named = "; ".join(f"{file.path} {words}" for file, words in faults)
        raise FetchError(f"{folder}: {named}. Run `triptych fetch {model.name}` without --offline")
    return Fetched(model, folder, record)


def _planned(model: Model, folder: Path, source: Source, progress: FetchProgress) -> Download:
    """The folder's record where it has a fitting one: then the hub is not even asked."""
    old = Record.read(folder)
    if old and old.is_of(model):
        record = old
    else:
        listing = source.listing(model)
        record = Record(model.name, model.repo, listing.commit, model.licence, tuple(wanted(model, listing.files)))
    faults = _faults(folder, record, progress)
    for file, words in faults:
        if (folder / file.path).exists():
            progress.say(f"{folder / file.path} {words}: fetching it again")
    stale = {file.path for file in old.files} - {file.path for file in record.files} if old else set()
    return Download(model, folder, record, tuple(file for file, _ in faults), tuple(sorted(stale)))


def _faults(folder: Path, record: Record, progress: FetchProgress) -> list[tuple[HubFile, str]]:
    present = sum(_size(folder / file.path) for file in record.files)
    told = progress.task(f"checking {record.model}", present) if present else _unheard
    found = [(file, fault(folder / file.path, file, told)) for file in record.files]
    return [(file, words) for file, words in found if words]


def _require_room(downloads: Sequence[Download], output: Path, free: int) -> None:
    needed = sum(download.missing_bytes() for download in downloads)
    if needed and needed + SPARE_BYTES > free:
        raise FetchError(
            f"{output}: {free / 1e9:.2f} GB left on its disk; {(needed + SPARE_BYTES) / 1e9:.2f} GB needed. Make room, or "
            "give a folder on another disk with --output"
        )


def _carry_out(download: Download, source: Source, progress: FetchProgress) -> Fetched:
    if download.needed or download.stale:
        with _alone_in(download.folder):
            download.record.write(download.folder)  # first: a run that goes on later keeps to the same commit
            for file in download.needed:
                _bring(download, file, source, progress)
            for path in download.stale:
                (download.folder / path).unlink(missing_ok=True)
            shutil.rmtree(download.folder / INCOMPLETE)
    return Fetched(download.model, download.folder, download.record, tuple(file.path for file in download.needed))


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder against another fetch, which would write into the same partial files."""
    (folder / INCOMPLETE).mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        _lock(lock, folder)
        yield
    finally:
        os.close(lock)


def _lock(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FetchError(f"{folder}: another fetch is at work there; wait for it") from None


def _bring(download: Download, file: HubFile, source: Source, progress: FetchProgress) -> None:
    """One file to its final name, which only whole and checked files get."""
    partial, final = download.partial(file), download.folder / file.path
    partial.parent.mkdir(exist_ok=True)
    resumed = _size(partial) > 0
    words = _download(download, file, source, progress)
    if words and resumed:  # the beginning came from an earlier run, and may be what differs
        words = _download(download, file, source, progress)
    if words:
        raise FetchError(
            f"{download.record.repo}: {file.path} {words}. Nothing of it is kept; try again, or ask who runs the hub"
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(final)


def _download(download: Download, file: HubFile, source: Source, progress: FetchProgress) -> str:
    """Complete a partial file; what is wrong with it, after which nothing of it is left."""
    partial = download.partial(file)
    if _size(partial) > file.size:
        partial.unlink()
    told = progress.task(f"{download.model.name}/{file.path}", file.size, _size(partial))
    source.download(download.model, download.record.revision, file, partial, told)
    partial.touch()  # a file of no bytes
    if words := fault(partial, file, _unheard):
        partial.unlink()
    else:
        _sync(partial)
    return words


def _sync(path: Path) -> None:
    """Have the bytes on the disk before the name says so."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _unheard(_: int) -> None:
    pass
