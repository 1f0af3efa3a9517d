"""Where jobs are kept, so that they outlive this process: a file of SQLite for one front, PostgreSQL for several."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from triptych.errors import ServerUnavailable, invalid

if TYPE_CHECKING:
    import psycopg

OPEN = "queued"
# A front that says nothing for so long, in seconds, has lost its jobs to the others; and a webhook that it was telling.
LEASE_S, TELLING_S = 10.0, 60.0
URLS = ("postgresql://", "postgres://")
CONNECT_S = 5
LOCK = 0x74726970  # any number that no other program of this database takes


@dataclass(frozen=True)
class Job:
    """One job as it is kept. Times are seconds since 1970; documents are JSON.

    Args:
        idempotency, digest: the caller's key, None for none, and SHA-256 of what came with it.
        status: `OPEN`, then completed, failed or cancelled.
        request: the body; None once it has ended.
        sent: ids of the requests that draw it, None for none yet.
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
    sent: str | None = None
    ended: float | None = None
    result: str | None = None
    error: str | None = None
    webhook: str | None = None
    due: float | None = None
    tries: int = 0


COLUMNS = tuple(field.name for field in fields(Job))
LIST, MARKS = ", ".join(COLUMNS), ", ".join("?" * len(COLUMNS))
SCHEMA = """
CREATE TABLE IF NOT EXISTS triptych_jobs (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, digest TEXT NOT NULL, created {real} NOT NULL, priority {integer} NOT NULL,
    idempotency TEXT, status TEXT NOT NULL, request TEXT, sent TEXT, ended {real}, result TEXT, error TEXT, webhook TEXT,
    due {real}, tries {integer} NOT NULL, owner TEXT NOT NULL, until {real} NOT NULL, UNIQUE (tenant, idempotency)
){options};
CREATE INDEX IF NOT EXISTS triptych_jobs_by_status ON triptych_jobs (status, until);
CREATE INDEX IF NOT EXISTS triptych_jobs_by_end ON triptych_jobs (ended);
CREATE INDEX IF NOT EXISTS triptych_jobs_by_due ON triptych_jobs (due);
"""


class Database(Protocol):
    """One connection, for one thread.

    Args:
        now: the database's own clock, in seconds since 1970, as SQL: fronts need not agree on the time.
        each: the rows of a JSON list of texts, as SQL.
    """

    now: str
    each: str

    def all(self, sql: str, *values: object) -> Sequence[tuple[Any, ...]]:
        """Carry out one statement, with `?` for values; its rows."""
        ...

    def tidy(self) -> None:
        """Give back the place of what was deleted."""
        ...

    def close(self) -> None: ...


class Store:
    """Keeps jobs; a job belongs to a tenant, and no call of another finds it.

    A job that has not ended is one front's, which says again and again that it is there; else another takes it.
    """

    def __init__(self, database: Database) -> None:
        self._db, self._owner = database, str(uuid.uuid4())

    def add(self, job: Job) -> Job:
        """Keep a new job, as this front's, and give it; or the one that this tenant has of the same idempotency key."""
        values = [getattr(job, name) for name in COLUMNS]
        self._db.all(
            f"INSERT INTO triptych_jobs ({LIST}, owner, until) VALUES ({MARKS}, ?, {self._db.now} + ?)"  # noqa: S608
            " ON CONFLICT DO NOTHING",
            *values,
            self._owner,
            LEASE_S,
        )
        same = self._jobs("tenant = ? AND (id = ? OR idempotency = ?)", job.tenant, job.id, job.idempotency)
        return same[0] if same else self.add(job)  # the other one was deleted in between

    def get(self, tenant: str, id: str) -> Job | None:
        """Give a job, None where the tenant has none of that id."""
        return next(iter(self._jobs("tenant = ? AND id = ?", tenant, id)), None)

    def sent(self, id: str, requests: Sequence[str]) -> None:
        """Keep which requests draw a job, so that every front can follow them."""
        self._db.all("UPDATE triptych_jobs SET sent = ? WHERE id = ?", json.dumps(requests), id)

    def end(self, job: Job) -> bool:
        """Keep a job's end; False where it had ended, or was deleted."""
        return bool(
            self._db.all(
                "UPDATE triptych_jobs SET status = ?, request = NULL, ended = ?, result = ?, error = ?, due = ?"
                " WHERE id = ? AND status = ? RETURNING id",
                *(job.status, job.ended, job.result, job.error, job.due, job.id, OPEN),
            )
        )

    def delete(self, id: str) -> None:
        """Forget a job."""
        self._db.all("DELETE FROM triptych_jobs WHERE id = ?", id)

    def hold(self, ids: Collection[str]) -> set[str]:
        """Say that these jobs are still this front's; those that are."""
        rows = self._db.all(
            f"UPDATE triptych_jobs SET until = {self._db.now} + ?"  # noqa: S608
            f" WHERE owner = ? AND status = ? AND id IN ({self._db.each}) RETURNING id",
            *(LEASE_S, self._owner, OPEN, json.dumps(list(ids))),
        )
        return {id for (id,) in rows}

    def take(self, most: int) -> Sequence[Job]:
        """Make jobs this front's that are nobody's, or a lost front's; what is to be drawn first comes first."""
        free = f"status = ? AND until < {self._db.now}"
        # Twice, since another front may have taken a row between its choice and its change.
        rows = self._db.all(
            f"UPDATE triptych_jobs SET owner = ?, until = {self._db.now} + ? WHERE {free} AND id IN"  # noqa: S608
            f" (SELECT id FROM triptych_jobs WHERE {free} ORDER BY priority DESC, created LIMIT ?) RETURNING {LIST}",
            *(self._owner, LEASE_S, OPEN, OPEN, max(0, most)),
        )
        return sorted((Job(*row) for row in rows), key=lambda job: (-job.priority, job.created))

    def free(self) -> None:
        """Leave what has not ended to the others."""
        self._db.all("UPDATE triptych_jobs SET until = 0 WHERE owner = ? AND status = ?", self._owner, OPEN)

    def due(self, now: float, most: int) -> Sequence[Job]:
        """Give ended jobs whose webhook is to be told by now, without their pictures; for a minute they are this front's."""
        rows = self._db.all(
            "UPDATE triptych_jobs SET due = ? WHERE due <= ? AND id IN"  # noqa: S608
            f" (SELECT id FROM triptych_jobs WHERE due <= ? ORDER BY due LIMIT ?) RETURNING {LIST}",
            *(now + TELLING_S, now, now, most),
        )
        return [replace(Job(*row), result=None) for row in rows]

    def told(self, id: str, due: float | None, tries: int) -> None:
        """Keep when a webhook is to be told again, None for never, and how often it was tried."""
        self._db.all("UPDATE triptych_jobs SET due = ?, tries = ? WHERE id = ?", due, tries, id)

    def next_due(self) -> float | None:
        """Tell when the next webhook is due."""
        ((first,),) = self._db.all("SELECT min(due) FROM triptych_jobs")
        return None if first is None else float(first)

    def expire(self, before: float, most_bytes: int) -> None:
        """Delete jobs that ended before a time, then the oldest that ended until the results take no more than that."""
        self._db.all("DELETE FROM triptych_jobs WHERE ended < ?", before)
        self._db.all(
            "DELETE FROM triptych_jobs WHERE id IN (SELECT id FROM (SELECT id, sum(length(result)) OVER"
            " (ORDER BY ended DESC, id) AS kept FROM triptych_jobs WHERE result IS NOT NULL) AS sums WHERE kept > ?)",
            most_bytes,
        )
        self._db.tidy()

    def close(self) -> None:
        """Disconnect."""
        self._db.close()

    def _jobs(self, where: str, *values: object) -> list[Job]:
        return [Job(*row) for row in self._db.all(f"SELECT {LIST} FROM triptych_jobs WHERE {where}", *values)]  # noqa: S608


def store(where: str | None) -> Store:
    """Open the store of a database: a URL of PostgreSQL, a file of SQLite, or None for a file that goes with the process.

    Raises:
        InvalidRequest: it cannot be opened, or is none of ours.
    """
    if where is not None and where.startswith(URLS):
        return Store(Postgres(where))
    if where is not None and "://" in where:
        raise invalid("jobs", where.partition("://")[0] + "://…", f"a file, or {URLS[0]}USER@HOST/DATABASE")
    return Store(Sqlite(None if where is None else Path(where)))


class Sqlite:
    """A file that its owner alone may read, and one front."""

    now = "(julianday('now') - 2440587.5) * 86400"
    each = "SELECT value FROM json_each(?)"

    def __init__(self, path: Path | None) -> None:
        self._file: int | None = None
        try:
            if path is not None:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._db = sqlite3.connect(path or "", isolation_level=None)
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(SCHEMA.format(real="REAL", integer="INTEGER", options=" STRICT"))
            self._db.execute("UPDATE triptych_jobs SET until = 0")  # whoever had them is gone: the file was free
        except BlockingIOError:
            self._shut()
            legal = f"a file of its own, or {URLS[0]}…, which several fronts share"
            raise invalid("jobs", f"{path}, which another front has", legal) from None
        except (OSError, sqlite3.Error) as error:
            self._shut()
            raise invalid("jobs", f"{path} ({error})", "a file that `triptych api` made, or none yet") from None

    def all(self, sql: str, *values: object) -> Sequence[tuple[Any, ...]]:
        return self._db.execute(sql, values).fetchall()

    def tidy(self) -> None:
        self._db.executescript("PRAGMA incremental_vacuum")  # `execute` frees one page only

    def close(self) -> None:
        self._db.close()
        self._shut()

    def _shut(self) -> None:
        """Close the file, last: that ends every lock on it that this process has."""
        if self._file is not None:
            os.close(self._file)


class Postgres:
    """A database that several fronts share; it may go away and come back."""

    now = "extract(epoch FROM clock_timestamp())::float8"
    each = "SELECT json_array_elements_text(?::json)"

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise invalid("jobs", URLS[0] + "… without its driver", "pip install 'triptych[postgres]'") from None
        self._url, self._errors = url, psycopg.Error
        self._connect = psycopg.connect
        self._db: psycopg.Connection[Any] | None = None
        schema = SCHEMA.format(real="DOUBLE PRECISION", integer="BIGINT", options="")
        try:
            with self._connected().transaction():
                self.all("SELECT pg_advisory_xact_lock(?)", LOCK)  # two that create a table at once hinder each other
                for statement in filter(str.strip, schema.split(";")):
                    self.all(statement)
        except (self._errors, ServerUnavailable) as error:
            raise invalid("jobs", f"{URLS[0]}… ({str(error).strip()})", "a database that can be reached") from None

    def all(self, sql: str, *values: object) -> Sequence[tuple[Any, ...]]:
        """As `Database`, once more where the connection was lost: every statement may be carried out twice.

        Raises:
            ServerUnavailable: the database is away.
        """
        for left in (1, 0):
            try:
                done = self._connected().execute(sql.replace("?", "%s").encode(), values)
                return done.fetchall() if done.description else []
            except self._errors as error:
                lost = self._db is None or self._db.closed
                if not lost:
                    raise
                if not left:
                    raise ServerUnavailable(f"jobs: their database is away ({str(error).strip()})") from None
        raise AssertionError

    def tidy(self) -> None:
        pass

    def close(self) -> None:
        if self._db is not None:
            self._db.close()

    def _connected(self) -> psycopg.Connection[Any]:
        if self._db is None or self._db.closed:
            self._db = None
            self._db = self._connect(
                self._url, autocommit=True, connect_timeout=CONNECT_S, fallback_application_name="triptych"
            )
        return self._db
