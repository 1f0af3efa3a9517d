"""Who may log in: a file of names and Argon2 hashes, a line each."""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerifyMismatchError

from triptych.errors import invalid

# OWASP's first choice: 19 MiB and some hundredths of a second for each attempt.
HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 2**10, parallelism=1, type=Type.ID)
NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
# As `PasswordHasher.hash` writes it; what a hash costs is in it, and nobody's costs more than this machine has.
HASH = re.compile(r"\$argon2id\$v=19\$m=\d{1,6},t=\d{1,2},p=\d{1,2}\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+")
MIN_PASSWORD = 8
# Wrong passwords that a name has before it waits, and for how long; seconds.
ATTEMPTS, LOCKED_S = 5, 30.0


def line_for(name: str, password: str) -> str:
    """Make a user's line for the file.

    Raises:
        InvalidRequest: a name of other characters, or a password that is too short.
    """
    if not NAME.fullmatch(name):
        raise invalid("name", repr(name), "1 … 64 letters, digits, '.', '_', '@', '-'")
    if len(password) < MIN_PASSWORD:
        raise invalid("password", f"{len(password)} characters", f"at least {MIN_PASSWORD}")
    return f"{name}:{HASHER.hash(password)}"


def read_users(path: Path) -> dict[str, str]:
    """Read a file's users: hashes by name. Blank lines and those that begin with # are skipped.

    Raises:
        InvalidRequest: the file cannot be read, others may read it, a line is none of `line_for`'s, or there is no user.
    """
    users = dict(_user(path, number, line) for number, line in _lines(path))
    if not users:
        raise invalid("users", f"{path}, which has no user", "lines that `triptych ui --add-user NAME` writes")
    return users


def _lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines that are to be users, with their numbers."""
    try:
        text, mode = path.read_text("utf-8"), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise invalid("users", f"{path} ({error})", "a file with a line for each user") from None
    if mode & 0o077 and os.name == "posix":
        raise invalid("users", f"{path}, which others may read or write", f"a file of one's own: chmod 600 {path}")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _user(path: Path, number: int, line: str) -> tuple[str, str]:
    # The line itself is not told: it may hold a password that somebody wrote as it is.
    name, _, kept = line.partition(":")
    if NAME.fullmatch(name) and kept.startswith("scrypt$"):
        given = f"{path} line {number}, a password of {name} that an older version hashed"
        raise invalid("users", given, f"one that is set anew: triptych ui --users {path} --add-user {name}")
    if not NAME.fullmatch(name) or not HASH.fullmatch(kept):
        raise invalid("users", f"{path} line {number}", "lines that `triptych ui --add-user NAME` writes")
    return name, kept


def add_user(path: Path, name: str, password: str) -> None:
    """Write a user's line into the file, which is made where missing, in place of an older one of that name.

    Raises:
        InvalidRequest: as `line_for`; the file cannot be read, or others may read it.
    """
    line = line_for(name, password)
    kept = []
    if path.exists():
        _lines(path)
        kept = [old for old in path.read_text("utf-8").splitlines() if not old.startswith(f"{name}:")]
    unfinished = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join([*kept, line, ""]))
    unfinished.replace(path)


class Door:
    """Tells whether a name and a password belong together; wrong ones lock a name for a while.

    A name that nobody has, a locked one and a wrong password take the same work and have the same answer.

    Args:
        users: as `read_users` gives them.
        clock: seconds, never going back.
    """

    def __init__(self, users: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._users, self._clock = users, clock
        self._nobody = HASHER.hash(secrets.token_urlsafe())
        self._failed: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str, password: str) -> bool:
        """Hash the password and compare; on any thread."""
        known = self._users.get(name, self._nobody)
        allowed = self._begin(name)
        right = _verify(known, password) and allowed
        if right:
            with self._lock:
                self._failed.pop(name, None)
        return right

    def _begin(self, name: str) -> bool:
        """Count an attempt as failed before it ends, so that many at once are no more than one after the other."""
        if name not in self._users:  # a name that nobody has needs no lock, and would fill the memory
            return False
        with self._lock:
            now = self._clock()
            recent = self._failed[name] = [at for at in self._failed.get(name, ()) if now - at < LOCKED_S]
            if len(recent) >= ATTEMPTS:
                return False
            recent.append(now)
            return True


def _verify(kept: str, password: str) -> bool:
    try:
        return HASHER.verify(kept, password.encode("utf-8", "replace"))
    except (VerifyMismatchError, InvalidHashError):
        return False
