"""A file of a repository as the hub states it, and whether the one on disk is that file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from triptych_export.fetching.errors import FetchError

CHUNK = 1 << 20
Told = Callable[[int], None]
_SHA256, _SHA1 = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFile:
    """A file at one commit.

    Attributes:
        path: below the repository's root, checked not to leave it.
        size: bytes.
        sha256: of its bytes, where it is stored with Git LFS (all weights are), else "".
        git_sha1: Git's own id of its bytes, where it is stored in Git, else "".

    Raises:
        FetchError: the path would leave a folder, or no digest is stated.
    """

    path: str
    size: int
    sha256: str = ""
    git_sha1: str = ""

    def __post_init__(self) -> None:
        if not is_inside(self.path):
            raise FetchError(f"path: {self.path!r} stated by the hub; legal: a path that stays in its folder")
        if self.size < 0 or not (_SHA256.fullmatch(self.sha256) or _SHA1.fullmatch(self.git_sha1)):
            raise FetchError(f"{self.path}: stated without a size and a digest; it cannot be checked")

    @property
    def digest(self) -> str:
        """What its bytes are compared by."""
        return self.sha256 or self.git_sha1


def is_inside(path: str) -> bool:
    """Whether a relative path of the hub stays below the folder that it is joined to."""
    parts = path.split("/")
    plain = all(part not in ("", ".", "..") for part in parts) and not any(ord(letter) < 32 for letter in path)
    return plain and "\\" not in path and ":" not in parts[0] and not PurePosixPath(path).is_absolute()


def fault(path: Path, file: HubFile, told: Told) -> str:
    """What is wrong with the file at `path`, in words; "" where it is the hub's. `told` hears of bytes read."""
    if not path.is_file():
        return "is missing"
    if (size := path.stat().st_size) != file.size:
        return f"has {size} bytes; the hub states {file.size}"
    if (found := _digest(path, file, told)) != file.digest:
        return f"has {'SHA-256' if file.sha256 else 'Git id'} {found}; the hub states {file.digest}"
    return ""


def _digest(path: Path, file: HubFile, told: Told) -> str:
    state = hashlib.sha256() if file.sha256 else _git_blob(file.size)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            state.update(chunk)
            told(len(chunk))
    return state.hexdigest()


def _git_blob(size: int) -> hashlib._Hash:
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
