"""Finished files by what was asked for. A hit is the same request of the same tenant, with its seed given, to the same build."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from triptych_contract.settings import Settings

from .manifest import Manifest
from .receipt import asked_for

FOLDER, MEGABYTES = "TRIPTYCH_CACHE_DIR", "TRIPTYCH_CACHE_MB"


class ImageCache:
    """A folder of files, the least recently used deleted first; several processes may share it."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._slack = max_bytes // 16  # files are counted again after so many new bytes, not at every one
        self._new_bytes = 0

    @classmethod
    def of_server(cls, environment: Mapping[str, str] = os.environ) -> ImageCache | None:
        """The cache that `triptych serve` has set up for its models, or None."""
        if FOLDER not in environment:
            return None
        return cls(Path(environment[FOLDER]), int(float(environment.get(MEGABYTES, "256")) * 1e6))

    @staticmethod
    def key(settings: Settings, manifest: Manifest, ran_on: Mapping[str, str]) -> str:
        """A hash of all that the file's bytes depend on, and of the tenant: nobody learns what others asked for."""
        made_by = [asked_for(settings), manifest.build_hash, dict(ran_on)]
        return hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> bytes | None:
        """The file's bytes, or None; a damaged one counts as none."""
        path = self._folder / key
        with contextlib.suppress(OSError):
            digest, data = (content := path.read_bytes())[:32], content[32:]
            if hashlib.sha256(data).digest() == digest:
                os.utime(path)
                return data
        return None

    def put(self, key: str, data: bytes) -> None:
        """Keep a file; where the disk does not let it, the cache stays without it."""
        with contextlib.suppress(OSError):
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".new-", delete=False) as file:
                try:
                    file.write(hashlib.sha256(data).digest() + data)
                    file.flush()
                    os.replace(file.name, self._folder / key)
                except OSError:
                    os.unlink(file.name)
                    raise
            self._new_bytes += len(data)
            if self._new_bytes >= self._slack:
                self._new_bytes = 0
                self._evict()

    def _evict(self) -> None:
        entries = sorted(
            ((entry.stat(), entry.path) for entry in os.scandir(self._folder) if not entry.name.startswith(".new-")),
            key=lambda entry: entry[0].st_mtime_ns,
        )
        excess = sum(facts.st_size for facts, _ in entries) - (self._max_bytes - self._slack)
        for facts, path in entries:
            if excess <= 0:
                break
            os.unlink(path)
            excess -= facts.st_size
