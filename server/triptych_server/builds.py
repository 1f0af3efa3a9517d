"""Builds by URL: fetched once a machine into a store by content, which all servers there share."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from triptych_serving.manifest import FILE_NAME, Manifest, ManifestError

from .layout import CannotServe

STORE = "TRIPTYCH_STORE"
AT_ONCE = 4
PIECE = 1 << 22
MAX_MANIFEST = 1 << 26
_SHA256 = re.compile(r"[0-9a-f]{64}")
_USER = re.compile(r"(?<=://)[^/@]*@")


def default_store() -> Path:
    """Where fetched builds are kept: what `TRIPTYCH_STORE` names, or a folder in the user's cache."""
    if named := os.environ.get(STORE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "triptych", "builds")


def local(build: str, store: Path | None = None, told: Callable[[str], None] = lambda _: None) -> Path:
    """Give the folder of a build: a path is one, and what a URL leads to is fetched.

    Args:
        build: a path, or a URL that `fsspec` knows, as s3://bucket/sdxl.
        store: where to keep what is fetched; None for `default_store`.
        told: of what is being fetched.

    Raises:
        CannotServe: the URL leads to no build, or the build is not what its manifest says; names URL and file.
    """
    if "://" not in build:
        return Path(build)
    shown = _USER.sub("", build)
    try:
        system, root = _opened(build)
        document = _read(system, f"{root}/{FILE_NAME}")
        return _Store(store or default_store()).build(
            document, lambda path: _Source(system, f"{root}/{path}"), told, shown
        )
    except ManifestError as error:
        raise CannotServe(f"{shown}: {error}") from None
    except CannotServe:
        raise
    except Exception as error:  # every file system has errors of its own
        words = _USER.sub("", f"{type(error).__name__}: {error}")
        raise CannotServe(f"{shown}: {words}; legal: the URL of a folder of `triptych export`") from None


def _opened(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise CannotServe("builds by URL need fsspec: pip install 'triptych[urls]'") from None
    system, root = url_to_fs(url)
    return system, str(root).rstrip("/")


def _read(system: Any, path: str) -> bytes:
    with _stream(system, path) as file:
        text: bytes = file.read(MAX_MANIFEST + 1)
    if len(text) > MAX_MANIFEST:
        raise ManifestError(f"{FILE_NAME}: over {MAX_MANIFEST} bytes")
    return text


def _stream(system: Any, path: str) -> Any:
    """Open a file to be read once: not every web server gives parts of one."""
    return system.open(path, "rb", **({"block_size": 0} if "http" in system.protocol else {}))


class _Source:
    """A file of a build where it is fetched from."""

    def __init__(self, system: Any, path: str) -> None:
        self._system, self._path = system, path

    def pieces(self, begin: int) -> Iterator[bytes]:
        """Give its bytes from `begin` on."""
        with _stream(self._system, self._path) as file:
            try:
                file.seek(begin)
            except (OSError, ValueError):  # a stream, of which what is here already has to pass by
                while begin and (passed := file.read(min(begin, PIECE))):
                    begin -= len(passed)
            while piece := file.read(PIECE):
                yield piece


class _Store:
    """Files by their SHA-256, and builds of hard links to them, by that of their manifest; whole or not there.

    Several processes may use it at once, and any may be killed: what is under way is a draft, which the next one goes on with.
    """

    def __init__(self, folder: Path) -> None:
        self._files, self._builds, self._drafts = folder / "files", folder / "by-manifest", folder / "drafts"
        for each in (self._files, self._builds, self._drafts):
            each.mkdir(parents=True, exist_ok=True)

    def build(self, document: bytes, source: Callable[[str], _Source], told: Callable[[str], None], shown: str) -> Path:
        """Give the folder of the build of a manifest, and fetch what is not here yet."""
        digest = hashlib.sha256(document).hexdigest()
        build = self._builds / digest
        if build.is_dir():
            return build
        with _locked(self._drafts / f"{digest}.lock"):
            if not build.is_dir():
                self._fetch(build, document, source, told, shown)
        return build

    def _fetch(
        self, build: Path, document: bytes, source: Callable[[str], _Source], told: Callable[[str], None], shown: str
    ) -> None:
        draft = self._drafts / f"{build.name}.build"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            (draft / FILE_NAME).write_bytes(document)
            artifacts = Manifest.load(draft).artifacts
            for path, artifact in artifacts.items():
                _check(path, artifact)
            size = sum(artifact["bytes"] for artifact in artifacts.values())
            told(f"fetching {shown}, {size / 1e9:.1f} GB")
            with ThreadPoolExecutor(AT_ONCE) as pool:
                fetching = {path: pool.submit(self._file, path, one, source(path)) for path, one in artifacts.items()}
                for path, each in fetching.items():
                    (draft / path).parent.mkdir(parents=True, exist_ok=True)
                    os.link(each.result(), draft / path)
            draft.rename(build)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _file(self, path: str, artifact: Mapping[str, Any], source: _Source) -> Path:
        """Give the file of a content, fetched where it is missing; what a killed process had of it is not fetched again."""
        name = str(artifact["sha256"])
        file, draft = self._files / name, self._drafts / name
        with _locked(self._drafts / f"{name}.lock"):
            if not file.is_file():
                _write(draft, path, artifact, source)
                draft.chmod(0o444)
                draft.rename(file)
        return file


def _write(draft: Path, path: str, artifact: Mapping[str, Any], source: _Source) -> None:
    digest, size = hashlib.sha256(), 0
    with draft.open("ab+") as file:
        file.seek(0)
        while piece := file.read(PIECE):
            digest.update(piece)
            size += len(piece)
        for piece in source.pieces(size) if size < artifact["bytes"] else ():
            digest.update(piece)
            size += len(piece)
            if size > artifact["bytes"]:
                break
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if size != artifact["bytes"] or digest.hexdigest() != artifact["sha256"]:
        if size >= artifact["bytes"]:
            draft.unlink()  # else it was cut off, and the next call goes on
        what = f"{size} bytes, {artifact['bytes']} expected" if size != artifact["bytes"] else "SHA-256 differs"
        raise ManifestError(f"{path}: {what}; is the build there whole?")


def _check(path: str, artifact: Mapping[str, Any]) -> None:
    """Let a manifest name nothing outside the build."""
    parts = PurePosixPath(path).parts
    if not parts or path != "/".join(parts) or ".." in parts or parts[0] == "/" or "\\" in path or "\0" in path:
        raise ManifestError(f"{path!r}: no path inside a build")
    if path == FILE_NAME or not _SHA256.fullmatch(artifact["sha256"]):
        raise ManifestError(f"{path}: no file of a build by its SHA-256")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process and no other thread has it; a killed one has nothing."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.close(lock)
