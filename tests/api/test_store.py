"""What keeps jobs: each tenant's apart, bounded, and nothing twice, in either database."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from triptych import InvalidRequest, ServerUnavailable
from triptych_api.store import Job, store

from .. import postgres


@pytest.fixture(scope="module")
def database():
    with postgres.running() as url:
        yield url


@pytest.fixture
def shared(database):
    """Opens stores of one PostgreSQL, as fronts do."""
    opened = []

    def another():
        opened.append(store(database))
        return opened[-1]

    another()._db.all("DELETE FROM triptych_jobs")
    yield another
    for one in opened:
        one.close()


@pytest.fixture(params=["sqlite", "postgres"])
def kept(request, tmp_path):
    if request.param == "postgres":
        yield request.getfixturevalue("shared")()
    else:
        made = store(str(tmp_path / "jobs.db"))
        yield made
        made.close()


def job(id, tenant="a", **more):
    return Job(id, tenant, f"digest of {id}", created=float(len(id)), request="{}", **more)


def over(id, **more):
    return replace(job(id), request=None, **{"status": "completed", "ended": 1.0, **more})


def test_a_job_is_its_tenants_alone(kept):
    kept.add(job("1"))
    assert kept.get("a", "1") == job("1")
    assert kept.get("b", "1") is None


def test_an_idempotency_key_is_its_tenants_alone(kept):
    first = kept.add(job("1", idempotency="k"))
    assert kept.add(job("2", idempotency="k")) == first
    assert kept.add(job("3", "b", idempotency="k")).id == "3"
    assert kept.add(job("4")).id == "4"
    assert kept.add(job("5")).id == "5"


def test_a_job_ends_once_and_what_was_deleted_stays_so(kept):
    for id in ("1", "2"):
        kept.add(job(id))
    assert kept.end(over("1", result="[]"))
    assert not kept.end(over("1", status="cancelled", ended=2.0))
    assert kept.get("a", "1") == over("1", result="[]")
    kept.delete("2")
    assert not kept.end(over("2"))
    assert kept.get("a", "2") is None


def test_the_requests_of_a_job_are_kept(kept):
    kept.add(job("1"))
    kept.sent("1", ["x", "y"])
    assert kept.get("a", "1").sent == '["x", "y"]'


def test_any_text_comes_back(kept):
    kept.add(job("1", idempotency='%s ? ü 🦊 "'))
    kept.end(over("1", error='{"message": "100% ? \\u0000"}', result="{}"))
    assert kept.get("a", "1").error == '{"message": "100% ? \\u0000"}'
    assert kept.get("a", "1").idempotency == '%s ? ü 🦊 "'


def test_the_oldest_results_go_first(kept):
    for k in range(8):
        kept.add(job(str(k)))
        kept.end(over(str(k), ended=float(k), result="x" * 2**20))
    kept.expire(before=2.0, most_bytes=3 * 2**20)
    assert [k for k in range(8) if kept.get("a", str(k))] == [5, 6, 7]


def test_webhooks_are_due_until_they_are_not(kept):
    kept.add(job("1", webhook="{}"))
    assert kept.next_due() is None
    kept.end(over("1", due=5.0, result="[]"))
    assert (kept.due(4.0, 8), kept.next_due()) == ([], 5.0)
    (found,) = kept.due(6.0, 8)
    assert (found.id, found.result) == ("1", None)
    assert kept.due(7.0, 8) == []  # somebody is telling it
    assert kept.due(67.0, 8) != []  # whoever was is gone
    kept.told("1", None, 1)
    assert (kept.next_due(), kept.get("a", "1").tries) == (None, 1)


def test_what_a_front_holds_nobody_takes(kept):
    for one in (job("22"), job("1"), job("333", priority=2)):
        kept.add(one)
    kept.end(over("22"))
    assert kept.take(10) == []
    assert kept.hold(["1", "22", "333", "4444"]) == {"1", "333"}
    kept.free()
    assert [one.id for one in kept.take(1)] == ["333"]
    assert [one.id for one in kept.take(10)] == ["1"]
    assert kept.take(10) == []


def test_a_file_is_one_fronts_and_holds_its_jobs_for_the_next(tmp_path):
    path = tmp_path / "jobs.db"
    before = store(str(path))
    for one in (job("22"), job("1")):
        before.add(one)
    with pytest.raises(
        InvalidRequest, match="which another front has given; legal: a file of its own, or postgresql://"
    ):
        store(str(path))
    before.close()
    after = store(str(path))
    assert [one.id for one in after.take(10)] == ["1", "22"]
    after.close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_gives_back_the_place_of_what_has_gone(tmp_path):
    kept = store(str(tmp_path / "jobs.db"))
    for k in range(8):
        kept.add(job(str(k)))
        kept.end(over(str(k), ended=float(k), result="x" * 2**20))
    kept.expire(before=0.0, most_bytes=3 * 2**20)
    kept.close()
    assert (tmp_path / "jobs.db").stat().st_size < 4 * 2**20


@pytest.mark.parametrize("where", ["x", "none/jobs.db", ".", "mysql://a/b", "postgresql://nobody@127.0.0.1:1/none"])
def test_what_is_no_store_is_refused_without_its_password(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(b"no database" * 1000)
    with pytest.raises(InvalidRequest, match="jobs: ") as error:
        store(where.replace("@", ":secret@"))
    assert "secret" not in str(error.value)


def test_a_job_of_one_front_is_found_by_the_other(shared):
    one, other = shared(), shared()
    one.add(job("1", idempotency="k"))
    assert other.get("a", "1") == job("1", idempotency="k")
    assert other.add(job("2", idempotency="k")).id == "1"
    assert other.take(10) == []
    assert other.hold(["1"]) == set()
    assert other.end(over("1", status="cancelled"))
    assert one.hold(["1"]) == set()


def test_a_lost_fronts_jobs_are_taken_by_one_of_the_others(shared, monkeypatch):
    lost, others = shared(), [shared() for _ in range(4)]
    with monkeypatch.context() as patched:
        patched.setattr("triptych_api.store.LEASE_S", -1.0)
        for k in range(40):
            lost.add(job(str(k)))
    with ThreadPoolExecutor(4) as pool:
        taken = [
            one.id
            for jobs in pool.map(lambda one: [job for _ in range(20) for job in one.take(2)], others)
            for one in jobs
        ]
    assert sorted(taken) == sorted(map(str, range(40)))
    assert lost.hold(taken) == set()


def test_a_webhook_is_told_by_one_front(shared):
    stores = [shared() for _ in range(4)]
    for k in range(40):
        stores[0].add(job(str(k), webhook="{}"))
        stores[0].end(over(str(k), due=1.0))
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda one: [job.id for _ in range(20) for job in one.due(2.0, 2)], stores)
        assert sorted(itertools.chain(*found)) == sorted(map(str, range(40)))


def test_a_database_that_was_away_is_found_again(shared, database):
    one, other = shared(), shared()
    one.add(job("1"))
    other._db.all(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'triptych' AND pid <> pg_backend_pid()"
    )
    assert one.get("a", "1") == job("1")
    one._db._url = "postgresql://nobody@127.0.0.1:1/none"
    one._db.close()
    with pytest.raises(ServerUnavailable, match="jobs: their database is away"):
        one.get("a", "1")
    one._db._url = database
    assert one.get("a", "1") == job("1")
