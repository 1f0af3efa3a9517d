"""The engine store: every engine under a name that says what it was made from, so none is ever stale or built twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from triptych_serving.manifest import sha256

PLAN, FACTS = "engine.plan", "facts.json"


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on. `onnx` is the graph with its weights by content, `code` what lowers and builds it."""

    stage: str
    onnx: str
    precision: str
    profiles: str
    target: str
    version: str  # TensorRT's
    capability: str
    code: str

    @property
    def name(self) -> str:
        """Hex digest over all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class StoredEngine:
    """An engine in the store: its file, and what is known about it (seconds, peak_bytes, sha256, bytes and its key)."""

    path: Path
    facts: Mapping[str, Any]


def default_store() -> Path:
    """Where engines are kept between exports: in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triptych" / "engines"


Make = Callable[[Path], Mapping[str, Any]]


class EngineStore:
    """A folder of engines that several builders may share, at once too."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def get(self, key: EngineKey, make: Make) -> StoredEngine:
        """The engine of `key`; where it is missing or harmed, `make(folder)` writes PLAN into a new folder and returns facts.

        Of several that ask at once one makes it and the others wait. A folder gets its name when it is whole: whoever dies
        in between leaves a folder that the next one removes.
        """
        with FileLock(self.root / f"{key.name}.lock"):
            found = self._find(key)
            if found is None:
                found = self._make(key, make)
            os.utime(found.path)  # the last use, for `prune`
            return found

    def prune(self, keep_bytes: int, in_use: Collection[str] = ()) -> list[Path]:
        """Remove the engines that were used longest ago until the rest has `keep_bytes` at most; returns what went.

        `in_use` are key names that stay whatever they take.
        """
        engines = sorted(self._engines(), key=lambda path: path.stat().st_mtime, reverse=True)
        kept, removed = 0, []
        for plan in engines:
            kept += plan.stat().st_size
            if kept > keep_bytes and plan.parent.name not in in_use:
                kept -= plan.stat().st_size
                with FileLock(self.root / f"{plan.parent.name}.lock"):
                    shutil.rmtree(plan.parent)
                removed.append(plan.parent)
        return removed

    def _engines(self) -> Iterator[Path]:
        return self.root.glob(f"[0-9a-f]*/{PLAN}")

    def _find(self, key: EngineKey) -> StoredEngine | None:
        folder = self.root / key.name
        try:
            facts = json.loads((folder / FACTS).read_text("utf-8"))
            whole = facts["bytes"] == (folder / PLAN).stat().st_size and facts["sha256"] == sha256(folder / PLAN)
        except (OSError, ValueError, KeyError):
            return None
        return StoredEngine(folder / PLAN, facts) if whole else None

    def _make(self, key: EngineKey, make: Make) -> StoredEngine:
        unfinished, folder = self.root / f".building-{key.name}", self.root / key.name
        for leftover in (unfinished, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished.mkdir()
        try:
            facts = {"key": asdict(key), **make(unfinished)}
            plan = unfinished / PLAN
            facts |= {"bytes": plan.stat().st_size, "sha256": sha256(plan)}
            (unfinished / FACTS).write_text(json.dumps(facts, indent=1), "utf-8")
            os.replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return StoredEngine(folder / PLAN, facts)
