"""Who may log in: a file of names and scrypt hashes, a line each."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from triptych.errors import invalid

# As OWASP has it: 2^15 blocks of 8 are 32 MiB for each attempt.
COST, BLOCK, PARALLEL = 2**15, 8, 1
MEMORY = 128 * 2**20
NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
LINE = re.compile(r"(?P<name>[A-Za-z0-9._@-]{1,64}):scrypt\$(?P<salt>[A-Za-z0-9+/=]+)\$(?P<hash>[A-Za-z0-9+/=]+)")
MIN_PASSWORD = 8
# Failed attempts that a name has before it waits, and for how long; seconds.
ATTEMPTS, LOCKED_S = 5, 30.0


class Hashed(NamedTuple):
    """What is kept of a password."""

    salt: bytes
    hash: bytes


def line_for(name: str, password: str) -> str:
    """A user's line for the file.

    Raises:
        InvalidRequest: a name of other characters, or a password that is too short.
    """
    if not NAME.fullmatch(name):
        raise invalid("name", repr(name), "1 … 64 letters, digits, '.', '_', '@', '-'")
    if len(password) < MIN_PASSWORD:
        raise invalid("password", f"{len(password)} characters", f"at least {MIN_PASSWORD}")
    salt = secrets.token_bytes(16)
    return f"{name}:scrypt${_base64(salt)}${_base64(_hash(password, salt))}"


def read_users(path: Path) -> dict[str, Hashed]:
    """The users of a file. Blank lines and those that begin with # are skipped.

    Raises:
        InvalidRequest: the file cannot be read, others may read it, a line is none of `line_for`'s, or there is no user.
    """
    try:
        text, mode = path.read_text("utf-8"), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise invalid("users", f"{path} ({error})", "a file with a line for each user") from None
    if mode & 0o077 and os.name == "posix":
        raise invalid("users", f"{path}, which others may read or write", f"a file of one's own: chmod 600 {path}")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    users = dict(_user(path, number, line) for number, line in lines if line and not line.startswith("#"))
    if not users:
        raise invalid("users", f"{path}, which has no user", "lines that `triptych ui --add-user NAME` writes")
    return users


def _user(path: Path, number: int, line: str) -> tuple[str, Hashed]:
    # The line itself is not told: it may hold a password that somebody wrote as it is.
    if not (match := LINE.fullmatch(line)):
        raise invalid("users", f"{path} line {number}", "lines that `triptych ui --add-user NAME` writes")
    return match["name"], Hashed(base64.b64decode(match["salt"]), base64.b64decode(match["hash"]))


def add_user(path: Path, name: str, password: str) -> None:
    """Write a user's line into the file, which is made where missing, in place of an older one of that name.

    Raises:
        InvalidRequest: as `line_for` and `read_users`.
    """
    line = line_for(name, password)
    kept = []
    if path.exists():
        read_users(path)
        kept = [old for old in path.read_text("utf-8").splitlines() if not old.startswith(f"{name}:")]
    unfinished = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join([*kept, line, ""]))
    unfinished.replace(path)


class Door:
    """Whether a name and a password belong together. Wrong ones take as long as right ones, and lock a name for a while.

    Args:
        users: as `read_users` gives them.
        clock: seconds, never going back.
    """

    def __init__(self, users: Mapping[str, Hashed], clock: Callable[[], float] = time.monotonic) -> None:
        self._users, self._clock = users, clock
        self._nobody = Hashed(secrets.token_bytes(16), secrets.token_bytes(32))
        self._failed: dict[str, list[float]] = {}
        self._lock = threading.Lock()  # one attempt at a time: each takes 32 MiB

    def __call__(self, name: str, password: str) -> bool:
        with self._lock:
            known = self._users.get(name, self._nobody)
            if self._locked(name):
                return False
            right = hmac.compare_digest(_hash(password, known.salt), known.hash) and name in self._users
            self._note(name, right)
            return right

    def _locked(self, name: str) -> bool:
        recent = [at for at in self._failed.get(name, ()) if self._clock() - at < LOCKED_S]
        if name in self._failed:
            self._failed[name] = recent
        return len(recent) >= ATTEMPTS

    def _note(self, name: str, right: bool) -> None:
        if right:
            self._failed.pop(name, None)
        elif name in self._users:  # a name that nobody has needs no lock, and would fill the memory
            self._failed.setdefault(name, []).append(self._clock())


def _hash(password: str, salt: bytes) -> bytes:
    secret = password.encode("utf-8", "replace")
    return hashlib.scrypt(secret, salt=salt, n=COST, r=BLOCK, p=PARALLEL, maxmem=MEMORY, dklen=32)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
