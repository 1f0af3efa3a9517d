"""Where jobs are kept, so that they outlive this process: SQLite behind a few calls."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

from triptych.errors import invalid

OPEN = "queued"


@dataclass(frozen=True)
class Job:
    """One job as it is kept. Times are seconds since 1970; documents are JSON.

    Args:
        idempotency, digest: the caller's key, None for none, and SHA-256 of what came with it.
        status: `OPEN`, then completed, failed or cancelled.
        request: the body; None once it has ended.
        result, error: the answer.
        webhook: where to tell that it ended; due: when next, None for never; tries: how often it was tried.
    """

    id: str
    tenant: str
    digest: str
    created: float
    priority: int = 0
    idempotency: str | None = None
    status: str = OPEN
    request: str | None = None
    ended: float | None = None
    result: str | None = None
    error: str | None = None
    webhook: str | None = None
    due: float | None = None
    tries: int = 0


class Store(Protocol):
    """What keeps jobs; a job belongs to a tenant, and no call of another finds it."""

    def add(self, job: Job) -> Job:
        """Keep a new job, and give it; or the one that this tenant has of the same idempotency key."""
        ...

    def get(self, tenant: str, id: str) -> Job | None: ...

    def save(self, job: Job) -> None:
        """Keep what changed; a job that was deleted stays so."""
        ...

    def delete(self, id: str) -> None: ...

    def unended(self) -> Sequence[Job]:
        """Give what is to be drawn yet, oldest first."""
        ...

    def due(self, now: float) -> Sequence[Job]:
        """Give the ended jobs whose webhook is to be told by now."""
        ...

    def next_due(self) -> float | None:
        """Tell when the next webhook is due."""
        ...

    def expire(self, before: float, most_bytes: int) -> None:
        """Delete jobs that ended before a time, then the oldest that ended until the results take no more than that."""
        ...

    def close(self) -> None: ...


COLUMNS = tuple(field.name for field in fields(Job))
SCHEMA = """
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
PRAGMA busy_timeout = 5000;
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, digest TEXT NOT NULL, created REAL NOT NULL, priority INTEGER NOT NULL,
    idempotency TEXT, status TEXT NOT NULL, request TEXT, ended REAL, result TEXT, error TEXT, webhook TEXT, due REAL,
    tries INTEGER NOT NULL, UNIQUE (tenant, idempotency)
) STRICT;
CREATE INDEX IF NOT EXISTS by_end ON jobs (ended);
CREATE INDEX IF NOT EXISTS by_due ON jobs (due);
"""


class SqliteStore:
    """A `Store` in a file that its owner alone may read; it belongs to one thread.

    Args:
        path: None for a file that goes with the process.

    Raises:
        InvalidRequest: the file is none of ours, or cannot be made.
    """

    def __init__(self, path: Path | None) -> None:
        try:
            if path is not None:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path or "", isolation_level=None)
            self._db.row_factory = lambda _, row: Job(*row)
            self._db.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise invalid("jobs", f"{path} ({error})", "a file that `triptych api` made, or none yet") from None

    def add(self, job: Job) -> Job:
        marks = ", ".join("?" * len(COLUMNS))
        values = [getattr(job, name) for name in COLUMNS]
        self._db.execute(f"INSERT INTO jobs ({_columns()}) VALUES ({marks}) ON CONFLICT DO NOTHING", values)  # noqa: S608
        found = self._all("tenant = ? AND (id = ? OR idempotency = ?)", job.tenant, job.id, job.idempotency)
        return found[0]

    def get(self, tenant: str, id: str) -> Job | None:
        return next(iter(self._all("tenant = ? AND id = ?", tenant, id)), None)

    def save(self, job: Job) -> None:
        changed = ", ".join(f"{name} = ?" for name in COLUMNS)
        self._db.execute(f"UPDATE jobs SET {changed} WHERE id = ?", [*(getattr(job, n) for n in COLUMNS), job.id])  # noqa: S608

    def delete(self, id: str) -> None:
        self._db.execute("DELETE FROM jobs WHERE id = ?", (id,))

    def unended(self) -> Sequence[Job]:
        return self._all("status = ? ORDER BY created", OPEN)

    def due(self, now: float) -> Sequence[Job]:
        return [replace(job, result=None) for job in self._all("due <= ? ORDER BY due LIMIT 100", now)]

    def next_due(self) -> float | None:
        first = self._all("due IS NOT NULL ORDER BY due LIMIT 1")
        return first[0].due if first else None

    def expire(self, before: float, most_bytes: int) -> None:
        self._db.execute("DELETE FROM jobs WHERE ended < ?", (before,))
        self._db.execute(
            "DELETE FROM jobs WHERE id IN (SELECT id FROM (SELECT id, sum(length(result)) OVER (ORDER BY ended DESC, id)"
            " AS kept FROM jobs WHERE result IS NOT NULL) WHERE kept > ?)",
            (most_bytes,),
        )
        self._db.executescript("PRAGMA incremental_vacuum")  # `execute` frees one page only

    def close(self) -> None:
        self._db.close()

    def _all(self, where: str, *values: object) -> list[Job]:
        return self._db.execute(f"SELECT {_columns()} FROM jobs WHERE {where}", values).fetchall()  # noqa: S608


def _columns() -> str:
    return ", ".join(COLUMNS)
