"""What each session has made: files in a private folder, never another session's, gone after a while."""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.errors import TriptychError
from triptych.files import save_in
from triptych.types import GeneratedImage

MAX_ENTRIES, MAX_BYTES = 200, 256 * 2**20
MAX_SESSIONS = 1000
EXPIRY_S, UPLOADS_S = 24 * 3600.0, 3600.0
# The browser's half of a session: a token of 32 bytes, in a cookie that no script can read.
COOKIE, TOKEN_BYTES = "triptych-session", 32
TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True)
class Entry:
    """A picture that was made. `settings` are its receipt's; `group` is shared by those that were asked for at once.

    `replayable` tells that the file alone is enough to make it again.
    """

    id: str
    path: Path
    form: str
    ensemble: str
    group: str
    seed: int
    settings: Mapping[str, Any]
    cached: bool
    replayable: bool
    size: int
    made_at: float
    milliseconds: float | None = None


@dataclass
class Session:
    """One browser of one user. `version` grows with every change, so that a page knows when to draw itself anew.

    `form` and `asked` are what the page's form held when something was last begun, for a page that is loaded anew;
    `drawn` is the seed that was last put there by us.
    """

    key: str
    folder: Path
    tenant: str
    entries: list[Entry] = field(default_factory=list)
    used_at: float = 0.0
    version: int = 0
    form: str = ""
    asked: Mapping[str, Any] = field(default_factory=dict)
    drawn: str = ""

    @property
    def uploads(self) -> Path:
        """The folder of what was uploaded, which need not be there."""
        return self.folder / "uploads"

    def touch(self) -> None:
        """Count a change."""
        self.version += 1

    def owns(self, path: str | Path) -> bool:
        """Tell whether a path is in this session's folder, wherever its links lead; there need be no such file."""
        try:
            return Path(path).resolve().is_relative_to(self.folder.resolve())
        except (OSError, ValueError, RuntimeError):  # too long, with a NUL, a loop of links
            return False

    def entry(self, id: str) -> Entry | None:
        """Find the picture of this id; None where this session has none."""
        return next((entry for entry in self.entries if entry.id == id), None)


def new_token() -> str:
    """Make an id that nobody guesses."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def key_of(token: str, user: str | None) -> str:
    """Make a session's key of the browser's token and whose login it is. It is not the token itself, which opens the session."""
    return hashlib.sha256(f"{user or ''}\0{token}".encode("utf-8", "replace")).hexdigest()


class Store:
    """The sessions of one page. `close` removes every file.

    Args:
        max_entries, max_bytes: of each session; the oldest pictures go first.
        max_sessions: the one that was used longest ago goes first.
        expiry_s: seconds without use after which a session goes.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        max_entries: int = MAX_ENTRIES,
        max_bytes: int = MAX_BYTES,
        max_sessions: int = MAX_SESSIONS,
        expiry_s: float = EXPIRY_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="triptych-ui-"))  # for this user alone
        self._limits = (max_entries, max_bytes, max_sessions)
        self._expiry_s, self._clock = expiry_s, clock
        self._sessions: dict[str, Session] = {}

    def session(self, token: str, user: str | None = None) -> Session:
        """Find the session of a browser's token and a user's name, or begin it."""
        key = key_of(token, user)
        session = self._sessions.get(key) or self._begin(key)
        session.used_at = self._clock()
        return session

    def find(self, token: str, user: str | None = None) -> Session | None:
        """Find the session of a browser's token and a user's name; None where it has none."""
        return self._sessions.get(key_of(token, user))

    def _begin(self, key: str) -> Session:
        while len(self._sessions) >= self._limits[2]:
            self._forget(min(self._sessions.values(), key=lambda session: session.used_at))
        # Folder and tenant have names of their own: the key is not to be read off a path or a server's log.
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        self._sessions[key] = Session(key, folder, tenant=f"ui-{secrets.token_hex(16)}")
        return self._sessions[key]

    def keep(self, session: Session, form: str, ensemble: str, group: str, image: GeneratedImage) -> Entry:
        """Write a picture's bytes as they came and remember it; the oldest ones make room.

        Raises:
            OSError: the disk is full.
            TriptychError: the session is over.
        """
        if self._sessions.get(session.key) is not session:
            raise TriptychError("session: it is over, and nothing is kept for it")
        path = save_in(session.folder, image.format, image.data)
        entry = Entry(
            id=secrets.token_urlsafe(16),
            path=path,
            form=form,
            ensemble=ensemble,
            group=group,
            seed=image.seed,
            settings=image.receipt,
            cached=image.cached,
            replayable=not any(image.receipt.get(name) for name in ("init_image", "control_images")),
            size=len(image.data),
            made_at=self._clock(),
            milliseconds=image.timings.get("total_ms"),
        )
        session.entries.append(entry)
        self._make_room(session)
        session.touch()
        return entry

    def clear(self, session: Session) -> None:
        """Delete every picture of a session."""
        for entry in session.entries:
            entry.path.unlink(missing_ok=True)
        session.entries.clear()
        session.touch()

    def alive(self, key: str) -> bool:
        """Tell whether a session of this key is still there."""
        return key in self._sessions

    def expire(self) -> None:
        """Forget the sessions that nobody has used for long, and delete uploads that were sent long ago."""
        oldest = self._clock() - self._expiry_s
        for session in [session for session in self._sessions.values() if session.used_at < oldest]:
            self._forget(session)
        for session in self._sessions.values():
            for path in session.uploads.rglob("*"):
                if path.is_file() and path.stat().st_mtime < self._clock() - UPLOADS_S:
                    path.unlink()

    def close(self) -> None:
        """Delete everything."""
        self._sessions.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make_room(self, session: Session) -> None:
        most, most_bytes, _ = self._limits
        while len(session.entries) > 1 and (
            len(session.entries) > most or sum(entry.size for entry in session.entries) > most_bytes
        ):
            session.entries.pop(0).path.unlink(missing_ok=True)

    def _forget(self, session: Session) -> None:
        self._sessions.pop(session.key, None)
        session.entries.clear()
        session.touch()
        with contextlib.suppress(OSError):
            shutil.rmtree(session.folder)
