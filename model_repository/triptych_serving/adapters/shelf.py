"""A server's folder of adapters, and a shelf of those in use, laid out as graphs read them.

An adapter is known by its file's SHA-256 from the moment a request is checked. What lies on the shelf is that file's, whatever
becomes of it in the folder; the models' processes map it into memory, so a job keeps what it has begun with.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triptych_contract.adapters import Adapter
from triptych_contract.errors import InvalidRequest, invalid, shown
from triptych_contract.families import FAMILIES
from triptych_contract.listed import NAME

from ..manifest import Manifest
from . import FOLDER, MEGABYTES, SHELF
from .files import BadAdapter, Facts, File, Slab
from .keys import Names
from .mix import Mix, Worn

SUFFIX = ".safetensors"
TOLD = 20  # so many names an error lists
# A file that was changed so short ago may change again without another time: clocks of file systems tick slowly.
SETTLED_NS = 1_000_000_000

HASH = re.compile(r"[0-9a-f]{64}")

Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Seen:
    """A file of the folder as it was looked over: its facts, or why it is not served."""

    stamp: Stamp
    facts: Facts | None = None
    refusal: str = ""


class Shelf:
    """The adapters of a folder for one build. Of those on the shelf the least recently used go first, above `max_bytes`."""

    def __init__(self, manifest: Manifest, folder: Path, shelf: Path, max_bytes: int) -> None:
        adapted = FAMILIES[manifest.family].adapted
        self._layers = {stage: manifest.stages[graph]["layers"] for stage, graph in adapted.items()}
        self._names = Names(self._layers)
        self._encoders = adapted.keys() & set(FAMILIES[manifest.family].encoders)
        self.rank: int = manifest.model.adapter_rank  # type: ignore[attr-defined] # of families with adapted stages
        self._folder, self._shelf, self._max_bytes = folder, shelf, max_bytes
        self._seen: dict[str, _Seen] = {}
        self._hashes: dict[Stamp, str] = {}
        self._lock = threading.Lock()

    @classmethod
    def of_server(cls, manifest: Manifest, environment: Mapping[str, str] = os.environ) -> Shelf | None:
        """Give the shelf that `triptych serve --adapters` has set up for its models, or None."""
        adapted = FAMILIES[manifest.family].adapted
        if FOLDER not in environment or not adapted.values() & manifest.stages.keys():
            return None
        most = int(float(environment[MEGABYTES]) * 1e6)
        return cls(manifest, Path(environment[FOLDER]), Path(environment[SHELF]), most)

    def served(self) -> dict[str, Facts]:
        """Look over what is new in the folder; give the adapters that are served, by name."""
        self._look()
        return {name: seen.facts for name, seen in self._seen.items() if seen.facts}

    def refused(self) -> dict[str, str]:
        """Give why files of the folder are not served, by name, as it was looked over last."""
        return {name: seen.refusal for name, seen in self._seen.items() if seen.refusal}

    def resolve(self, asked: Sequence[Adapter]) -> tuple[Adapter, ...]:
        """Give a request's adapters with the SHA-256 of their files, which lie on the shelf from now on.

        Raises:
            InvalidRequest: a name is not served, or their ranks are too many in all; has all problems.
        """
        served = self.served()
        problems = [problem for one in asked for problem in self._problems(one, served)]
        if problems:
            raise InvalidRequest(problems)
        ranks = [served[one.name].rank for one in asked]
        if sum(ranks) > self.rank:
            given = " + ".join(map(str, ranks)) + (f" = {sum(ranks)}" if len(ranks) > 1 else "")
            raise invalid("lora", f"rank {given}", f"at most {self.rank} in all, as this model was exported")
        resolved = tuple(one._replace(sha256=self._put(one.name)) for one in asked)
        self._evict({one.sha256 for one in resolved})
        return resolved

    def at_hand(self, asked: Sequence[Adapter]) -> bool:
        """Tell whether `resolve` has nothing to read: what is not served is refused at once."""
        self._look()
        seen = [self._seen[one.name] for one in asked if one.name in self._seen]
        hashes = [self._hashes.get(one.stamp) for one in seen if one.facts]
        return all(sha256 and (self._shelf / sha256).is_dir() for sha256 in hashes)

    def mix(self, worn: Sequence[Adapter], stage: str) -> Mix | None:
        """Give what adapters of a checked request add to a stage; None where that is nothing.

        Raises:
            InvalidRequest: one has left the folder and the shelf since the request was checked.
        """
        slabs = [(self._open(one, stage), one.scale) for one in worn]
        parts = tuple(Worn(*found, scale) for found, scale in slabs if found is not None)
        return Mix(parts, self.rank) if parts else None

    def for_encoders(self, worn: Sequence[Adapter]) -> tuple[Adapter, ...]:
        """Give those of a request's adapters that change a text encoder."""
        return tuple(
            one for one in worn if any((self._shelf / one.sha256 / f"{name}.a.npy").exists() for name in self._encoders)
        )

    def _problems(self, one: Adapter, served: Mapping[str, Facts]) -> Sequence[Any]:
        if one.name in served:
            return ()
        refusal = self.refused().get(one.name)
        if refusal:
            return invalid("lora", f"{one.name}, which is not served ({refusal})", "another").problems
        told = ", ".join(sorted(served)[:TOLD]) + (f" and {len(served) - TOLD} more" if len(served) > TOLD else "")
        return invalid(
            "lora", f"{one.name}, which this server does not have", told or "none: its folder is empty"
        ).problems

    def _look(self) -> None:
        """Look over what has come or changed since the last look; forget what has gone."""
        with self._lock:
            found: dict[str, _Seen] = {}
            with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
                for entry in entries:
                    name = entry.name.removesuffix(SUFFIX)
                    if name != entry.name and entry.is_file():
                        found[name] = self._look_over(name, entry)
            self._seen = found

    def _look_over(self, name: str, entry: os.DirEntry[str]) -> _Seen:
        stamp = _stamp(entry.stat())
        if (seen := self._seen.get(name)) and seen.stamp == stamp:
            return seen
        try:
            NAME.check("name", NAME.typed("name", name))
            with open(entry.path, "rb") as file:
                return _Seen(stamp, File(file, stamp[1], self._layers, self._names).facts)
        except (BadAdapter, InvalidRequest, OSError) as error:
            return _Seen(stamp, refusal=str(error))

    def _put(self, name: str) -> str:
        """Put what the folder has by this name on the shelf, unless it is there; its SHA-256."""
        path = self._folder / f"{name}{SUFFIX}"
        try:
            stamp = _stamp(path.stat())
            known = self._hashes.get(stamp)
            if known and (self._shelf / known).is_dir():
                os.utime(self._shelf / known)
                return known
            data = path.read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            if not (self._shelf / sha256).is_dir():
                file = File(io.BytesIO(data), len(data), self._layers, self._names)
                self._lay_out(sha256, file.slabs(data))
        except (BadAdapter, ValueError) as error:
            raise invalid("lora", f"{name}, which is not served ({error})", "another") from None
        except FileNotFoundError:
            raise invalid("lora", f"{name}, which this server does not have any more", "another") from None
        if time.time_ns() - stamp[2] > SETTLED_NS:
            self._hashes[stamp] = sha256
        return sha256

    def _lay_out(self, sha256: str, slabs: Mapping[str, tuple[Slab, Slab]]) -> None:
        with tempfile.TemporaryDirectory(dir=self._shelf, prefix=".new-") as name:
            new = Path(name) / sha256
            new.mkdir()
            for stage, (a, b) in slabs.items():
                np.save(new / f"{stage}.a.npy", a)
                np.save(new / f"{stage}.b.npy", b)
            with contextlib.suppress(FileExistsError, OSError):  # another process was quicker
                new.rename(self._shelf / sha256)

    def _open(self, one: Adapter, stage: str) -> tuple[Slab, Slab] | None:
        if not HASH.fullmatch(one.sha256):  # whoever calls a model of the ensemble directly may say anything
            raise invalid("lora", f"{one.name} with SHA-256 {shown(one.sha256)}", "what the ensemble passes on")
        lies = self._shelf / one.sha256
        if not lies.is_dir() and self._put_again(one) != one.sha256:
            raise invalid("lora", f"{one.name}, which was replaced before it was begun", "the same once more")
        try:
            a, b = (np.load(lies / f"{stage}.{half}.npy", mmap_mode="r") for half in "ab")
            return a, b
        except FileNotFoundError:
            return None  # it does not change this stage

    def _put_again(self, one: Adapter) -> str | None:
        """Many others may have been used since."""
        with contextlib.suppress(InvalidRequest):
            return self._put(one.name) if one.name in self.served() else None
        return None

    def _evict(self, needed: set[str]) -> None:
        found = [(entry.stat().st_mtime_ns, Path(entry.path)) for entry in os.scandir(self._shelf) if entry.is_dir()]
        sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for _, path in found}
        excess = sum(sizes.values()) - self._max_bytes
        for _, path in sorted(found):
            if excess <= 0:
                break
            if path.name not in needed and not path.name.startswith("."):
                shutil.rmtree(path, ignore_errors=True)
                excess -= sizes[path]


def _stamp(state: os.stat_result) -> Stamp:
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
