"""What keeps jobs: each tenant's apart, bounded, and nothing twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from triptych import InvalidRequest
from triptych_api.store import Job, SqliteStore


@pytest.fixture
def store(tmp_path):
    made = SqliteStore(tmp_path / "jobs.db")
    yield made
    made.close()


def job(id, tenant="a", **more):
    return Job(id, tenant, f"digest of {id}", created=float(len(id)), request="{}", **more)


def test_a_job_is_its_tenants_alone(store):
    store.add(job("1"))
    assert store.get("a", "1") == job("1")
    assert store.get("b", "1") is None


def test_an_idempotency_key_is_its_tenants_alone(store):
    first = store.add(job("1", idempotency="k"))
    assert store.add(job("2", idempotency="k")) == first
    assert store.add(job("3", "b", idempotency="k")).id == "3"
    assert store.add(job("4")).id == "4"
    assert store.add(job("5")).id == "5"


def test_what_was_deleted_stays_so(store):
    store.add(job("1"))
    store.delete("1")
    store.save(job("1", status="completed"))
    assert store.get("a", "1") is None


def test_what_has_not_ended_is_found_again_by_another_process(tmp_path):
    path = tmp_path / "jobs.db"
    before = SqliteStore(path)
    for one in (job("22"), job("1"), job("333", status="failed", ended=1.0)):
        before.add(one)
    assert [one.id for one in SqliteStore(path).unended()] == ["1", "22"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_oldest_results_go_first_and_their_place_on_the_disk(store, tmp_path):
    for k in range(8):
        store.add(job(str(k)))
        store.save(replace(job(str(k)), status="completed", ended=float(k), result="x" * 2**20))
    store.expire(before=2.0, most_bytes=3 * 2**20)
    assert [k for k in range(8) if store.get("a", str(k))] == [5, 6, 7]
    store.close()
    assert (tmp_path / "jobs.db").stat().st_size < 4 * 2**20


def test_another_file_is_none(tmp_path):
    (tmp_path / "x").write_bytes(b"no database" * 1000)
    for path in (tmp_path / "x", tmp_path / "none" / "jobs.db", tmp_path):
        with pytest.raises(InvalidRequest, match="jobs: "):
            SqliteStore(path)


def test_webhooks_are_due_until_they_are_not(store):
    store.add(job("1"))
    assert store.next_due() is None
    store.save(replace(job("1"), status="completed", due=5.0, webhook="{}"))
    assert (store.due(4.0), store.next_due()) == ([], 5.0)
    assert [one.id for one in store.due(6.0)] == ["1"]
    store.save(replace(job("1"), status="completed", tries=1))
    assert store.due(6.0) == []
