"""What an export has finished, written down at once: a second run keeps it, an interrupted one loses a single part."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from triptych_serving.manifest import sha256

FILE_NAME = ".export.json"

Facts = dict[str, Any]


class Ledger:
    """The parts of a build folder: what each was made from, its files with size and SHA-256, facts about it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._old: dict[str, Facts] = {}
        self._parts: dict[str, Facts] = {}
        with contextlib.suppress(OSError, ValueError):
            self._old = json.loads((folder / FILE_NAME).read_text("utf-8"))

    def part(self, name: str, made_from: str, make: Callable[[], tuple[Iterable[str], Facts]]) -> Facts:
        """The facts of a part: kept where it was made from the same things and is unharmed, else made.

        `make` returns the files it wrote, relative to the folder, and the facts.
        """
        old = self._old.get(name, {})
        if not self.has(name, made_from):
            files, facts = make()
            old = {"made_from": made_from, "files": {file: self._content(file) for file in files}, "facts": facts}
        self._parts[name] = old
        self._write({**self._old, **self._parts})
        return dict(old["facts"])

    def has(self, name: str, made_from: str) -> bool:
        """Whether a part is there, made from the same things, and unharmed."""
        old = self._old.get(name)
        return old is not None and old["made_from"] == made_from and self._unharmed(old["files"])

    @property
    def artifacts(self) -> dict[str, Facts]:
        """Every file of every part, sorted by path."""
        files = {file: content for part in self._parts.values() for file, content in part["files"].items()}
        return dict(sorted(files.items()))

    def finish(self) -> None:
        """Forget parts that this run had no use for."""
        self._write(self._parts)

    def _unharmed(self, files: Facts) -> bool:
        with contextlib.suppress(OSError):
            return all(self._content(file) == content for file, content in files.items())
        return False

    def _content(self, file: str) -> Facts:
        path = self._folder / file
        return {"sha256": sha256(path), "bytes": path.stat().st_size}

    def _write(self, parts: dict[str, Facts]) -> None:
        unfinished = self._folder / f"{FILE_NAME}.new"
        unfinished.write_text(json.dumps(parts, indent=1), "utf-8")
        os.replace(unfinished, self._folder / FILE_NAME)
