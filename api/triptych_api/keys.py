"""API keys: a file of hashes, made and revoked by a command, read anew when it changes."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from triptych.errors import invalid
from triptych_contract.settings import tenant
from triptych_web.limits import Limits

NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
# A key is `tp-<id>-<secret>`: the id finds it, the secret has 256 bits, so that a plain hash is enough.
PREFIX = "tp-"
LEGAL = "a file that `triptych api keys add` writes"


@dataclass(frozen=True)
class Key:
    """One key as the file has it.

    Args:
        id: the part of it that logs and lists show.
        digest: SHA-256 of its secret, in hexadecimal.
        tenant: whom its requests belong to; keys of one tenant see each other's jobs.
        under_way, a_minute: pictures at once, and begun in a minute.
        priority: jobs of a higher one start first.
        created, revoked: seconds since 1970; None for not revoked.
    """

    id: str
    name: str
    digest: str
    tenant: str
    under_way: int = 64
    a_minute: float = 600
    priority: int = 0
    created: int = 0
    revoked: int | None = None


@dataclass(frozen=True)
class Caller:
    """Who asks: a key's holder, or anybody where no keys are asked for."""

    id: str = ""
    tenant: str = ""
    priority: int = 0
    limits: Limits = field(default_factory=Limits)


NOBODY = Key("", "", "0" * 64, "")


class Keys:
    """The keys of a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._keys: Mapping[str, Key] = {}
        self._callers: dict[str, tuple[Key, Caller]] = {}

    def all(self) -> list[Key]:
        """Give every key, revoked ones too.

        Raises:
            InvalidRequest: the file cannot be read, others may read it, or it is none of `keys add`'s.
        """
        self._refresh()
        return list(self._keys.values())

    def caller(self, token: str) -> Caller | None:
        """Give whom a key belongs to; None for a wrong or a revoked one, after the same work."""
        self._refresh()
        id, _, secret = token.removeprefix(PREFIX).partition("-")
        key = self._keys.get(id, NOBODY)
        right = hmac.compare_digest(_digest(secret), key.digest)
        if not right or key is NOBODY or key.revoked is not None:
            return None
        known = self._callers.get(id)
        if known is None or known[0] != key:  # its limits may have changed
            limits = Limits(under_way=key.under_way, a_minute=key.a_minute)
            known = self._callers[id] = key, Caller(id, key.tenant, key.priority, limits)
        return known[1]

    def add(self, name: str, **settings: Any) -> str:
        """Make a key, and give it: it is nowhere else.

        Args:
            settings: more of `Key`'s fields.

        Raises:
            InvalidRequest: a name or a tenant that is none; the file cannot be read.
        """
        if not NAME.fullmatch(name):
            raise invalid("name", repr(name), "1 … 64 letters, digits, '.', '_', '@', '-'")
        keys = self.all() if self._path.exists() else []
        id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        given = {**settings, "tenant": tenant(settings.get("tenant")) or id}
        self._write([*keys, Key(id, name, _digest(secret), created=int(time.time()), **given)])
        return f"{PREFIX}{id}-{secret}"

    def revoke(self, id: str) -> None:
        """Let a key open nothing any more; a front that runs notices at once.

        Raises:
            InvalidRequest: there is no such key.
        """
        keys = {key.id: key for key in self.all()}
        if id not in keys:
            raise invalid("id", repr(id), ", ".join(keys) or "nothing: there is no key")
        keys[id] = replace(keys[id], revoked=int(time.time()))
        self._write(list(keys.values()))

    def _refresh(self) -> None:
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
            if stamp == self._stamp:
                return
            if found.st_mode & 0o077 and os.name == "posix":
                legal = f"a file of one's own: chmod 600 {self._path}"
                raise invalid("keys", f"{self._path}, which others may read or write", legal)
            keys = [Key(**entry) for entry in json.loads(self._path.read_text("utf-8"))["keys"]]
        except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
            raise invalid("keys", f"{self._path} ({error})", LEGAL) from None
        self._keys, self._stamp = {key.id: key for key in keys}, stamp

    def _write(self, keys: list[Key]) -> None:
        unfinished = self._path.with_name(f".{self._path.name}-{secrets.token_hex(8)}")
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"keys": [asdict(key) for key in keys]}, file, indent=1)
        unfinished.replace(self._path)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
