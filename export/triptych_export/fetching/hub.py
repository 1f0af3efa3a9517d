"""The hub over HTTP, by `huggingface_hub`: what a repository holds at a commit, and its files, resumed where they broke off.

`hf_hub_download` begins anew after an interrupted run (its temporary file is unique to a process), so files are streamed
here over the library's own session, which brings the token, proxies and certificates.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from triptych.errors import invalid
from triptych_export.fetching.errors import FetchError
from triptych_export.fetching.files import HubFile, Told
from triptych_export.published import HUB, Model

if TYPE_CHECKING:
    import httpx2

INSTALL = "pip install 'triptych[fetch]'"
WAITS_S = (1.0, 2.0, 4.0, 8.0, 8.0)
TIMEOUT_S = 30.0
_BUSY = (408, 429, 500, 502, 503, 504)
T = TypeVar("T")


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    commit: str
    files: tuple[HubFile, ...]


class Hub:
    """One hub.

    Args:
        endpoint: its address; default HF_ENDPOINT, else huggingface.co.
        waits_s: seconds before each further try of what may pass: no connection, a busy server. A download that moves
            on gets all of them again.
        sleep: how to wait.

    Raises:
        FetchError: huggingface_hub is not installed.
        InvalidRequest: the address is none.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        waits_s: Sequence[float] = WAITS_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        _require_library()
        self._endpoint = _address(endpoint or os.environ.get("HF_ENDPOINT") or HUB)
        self._waits_s, self._sleep = tuple(waits_s), sleep

    def listing(self, model: Model) -> Listing:
        """The files of `model` at its pinned commit, else at the one that `main` has now.

        Raises:
            FetchError: the hub cannot be reached, refuses, or answers something else.
        """
        from huggingface_hub import HfApi

        api = HfApi(self._endpoint, library_name="triptych")
        with self._explained(model):
            info = self._tried(
                lambda: api.model_info(model.repo, revision=model.revision, files_metadata=True, timeout=TIMEOUT_S)
            )
        commit = str(info.sha)
        if model.revision not in (None, commit):
            raise FetchError(f"{model.repo}: {self._name} answers with commit {commit}; asked for {model.revision}")
        return Listing(commit, tuple(_stated(sibling) for sibling in info.siblings or ()))

    def download(self, model: Model, commit: str, file: HubFile, partial: Path, told: Told) -> None:
        """Bring `partial` to the file's size, from where it is; `told` hears of bytes that arrived.

        Raises:
            FetchError: as `listing`; what has arrived is kept.
        """
        with self._explained(model):
            self._tried(
                lambda: self._stream(model.repo, commit, file, partial, told),
                progress=lambda: _size(partial),
            )

    def _stream(self, repo: str, commit: str, file: HubFile, partial: Path, told: Told) -> None:
        if (offset := _size(partial)) == file.size:
            return
        with self._response(repo, commit, file.path, offset) as response, partial.open("ab") as out:
            if offset and not _continues(response, offset):
                out.truncate(0)
                told(-offset)
                offset = 0
            for chunk in response.iter_bytes():  # as it arrives: what has is kept
                offset += len(chunk)
                if offset > file.size:
                    partial.unlink()
                    raise FetchError(f"{file.path}: more bytes arrive than the hub states, {file.size}")
                out.write(chunk)
                told(len(chunk))
        if offset < file.size:
            raise _Broken(f"{file.path}: ended after {offset} of {file.size} bytes")

    @contextmanager
    def _response(self, repo: str, commit: str, path: str, offset: int) -> Iterator[httpx2.Response]:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # where its documentation has them
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        url = hf_hub_url(repo, path, revision=commit, endpoint=self._endpoint)
        # The session drops the token where a redirect leads to another host, as to the hub's storage.
        headers = {**build_hf_headers(library_name="triptych"), "Accept-Encoding": "identity"}
        headers |= {"Range": f"bytes={offset}-"} if offset else {}
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
            hf_raise_for_status(response)
            yield response

    def _tried(self, action: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
        """`action`'s result, tried again while that may help."""
        waits = iter(self._waits_s)
        while True:
            before = progress()
            try:
                return action()
            except Exception as error:
                waits = iter(self._waits_s) if progress() > before else waits
                wait_s = next(waits, None) if _may_pass(error) else None
                if wait_s is None:
                    raise
                self._sleep(wait_s)

    @property
    def _name(self) -> str:
        """The hub's host, without what else an address may hold."""
        return urlsplit(self._endpoint).hostname or "the hub"

    @contextmanager
    def _explained(self, model: Model) -> Iterator[None]:
        """Turn the library's errors into one line that says what mends it."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        try:
            yield
        except HfHubHTTPError as error:
            raise FetchError(_refusal(model, self._name, error.response.status_code)) from None
        except OfflineModeIsEnabled:
            raise FetchError("HF_HUB_OFFLINE is set: nothing is fetched; unset it, or give --offline") from None
        except (ValueError, LookupError, TypeError) as error:
            words = f"{self._name} does not answer as a hub does ({type(error).__name__}); check HF_ENDPOINT"
            raise FetchError(f"{model.repo}: {words}") from None
        except (httpx2.HTTPError, _Broken) as error:
            words = str(error) or type(error).__name__
            raise FetchError(
                f"{model.repo}: no connection to {self._name} ({words}); check the network, the proxy and HF_ENDPOINT "
                "and run the same command again: what arrived is kept"
            ) from None


class _Broken(Exception):
    """The stream ended too early without saying so."""


def _require_library() -> None:
    # Read at the import: which torch and which tools this machine has is not the hub's business.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise FetchError(f"{error.name} is missing; {INSTALL}") from None


def _address(endpoint: str) -> str:
    if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname:
        raise invalid(
            "HF_ENDPOINT", "something else", "an address such as https://huggingface.co"
        )  # may hold a password
    return endpoint.rstrip("/")


def _stated(sibling: object) -> HubFile:
    from huggingface_hub.hf_api import RepoSibling

    assert isinstance(sibling, RepoSibling)  # noqa: S101 - the library's own type
    size = -1 if sibling.size is None else sibling.size
    if sibling.lfs:
        return HubFile(sibling.rfilename, size, sha256=sibling.lfs.sha256)
    return HubFile(sibling.rfilename, size, git_sha1=sibling.blob_id or "")


def _continues(response: httpx2.Response, offset: int) -> bool:
    """Whether the answer begins where the partial file ends; a server may ignore a Range."""
    return response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _may_pass(error: Exception) -> bool:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _BUSY
    return isinstance(error, (httpx2.TransportError, _Broken))


def _refusal(model: Model, host: str, status: int) -> str:
    if status in (401, 403):
        return (
            f"{model.repo}: {host} refuses ({status}); accept its terms at {model.page} with an account of yours, and set "
            "HF_TOKEN to a valid token of that account with read access"
        )
    if status == 404:
        return f"{model.repo}: {host} does not have it, or not at revision {model.revision or 'main'} (404)"
    if status in _BUSY:
        return f"{model.repo}: {host} is busy ({status}); run the same command again later: what arrived is kept"
    return f"{model.repo}: {host} answers {status}"
