"""A PostgreSQL of the tests' own, from its wheel; where that cannot be had, tests that need it are skipped."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def running() -> Iterator[str]:
    """The URL of an empty database."""
    pytest.importorskip("psycopg", reason="no psycopg here: pip install 'triptych[postgres]'")
    pgserver = pytest.importorskip("pgserver", reason="no pgserver here, the wheel with PostgreSQL")
    # Not below a folder of root's alone: PostgreSQL runs as another user then.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="postgres") as folder, pgserver.get_server(folder) as server:
        yield server.get_uri()
