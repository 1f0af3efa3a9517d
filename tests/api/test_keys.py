"""API keys: made, found, revoked, and compared without telling anything."""

from __future__ import annotations

import hmac
import os
import statistics
import time

import pytest

from triptych import InvalidRequest
from triptych_api import keys
from triptych_api.keys import Keys


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.json"


def test_a_key_is_its_callers_with_what_it_was_made_with(file):
    secret = Keys(file).add("ada", tenant="house", under_way=3, a_minute=7, priority=2)
    caller = Keys(file).caller(secret)
    assert (caller.tenant, caller.priority) == ("house", 2)
    assert (caller.limits.under_way, caller.limits.a_minute) == (3, 7)


def test_each_key_is_a_tenant_of_its_own(file):
    held = Keys(file)
    one, other = held.caller(held.add("ada")), held.caller(held.add("ada"))
    assert one.tenant != other.tenant
    assert one.tenant == one.id


def test_limits_are_those_of_the_key_whoever_asks(file):
    held = Keys(file)
    secret = held.add("ada")
    assert held.caller(secret).limits is held.caller(secret).limits


@pytest.mark.parametrize("wrong", ["", "x", "tp-", "tp--", "tp-a-b", "tp-\udcff-é", "é" * 10_000])
def test_what_is_no_key_is_nobodys(file, wrong):
    held = Keys(file)
    secret = held.add("ada")
    assert held.caller(wrong) is None
    assert held.caller(secret[:-1]) is None
    assert held.caller(secret + "x") is None


def test_another_process_revokes_a_key(file):
    held = Keys(file)
    secret = held.add("ada")
    id = held.caller(secret).id
    Keys(file).revoke(id)
    assert held.caller(secret) is None
    with pytest.raises(InvalidRequest, match=r"id: 'none' given"):
        Keys(file).revoke("none")


def test_the_file_is_for_its_owner_alone(file):
    Keys(file).add("ada")
    assert file.stat().st_mode & 0o777 == 0o600
    os.chmod(file, 0o644)
    with pytest.raises(InvalidRequest, match="others may read"):
        Keys(file).all()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"keys": 3}', '{"keys": [{}]}', '{"keys": [{"id": 1, "x": 2}]}'])
def test_another_file_is_none(file, text):
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(InvalidRequest, match="keys:"):
        Keys(file).all()


def test_wrong_keys_of_every_kind_take_the_same_comparison(file, monkeypatch):
    """A known id and an unknown one, a right beginning and none: one digest and one comparison each."""
    held = Keys(file)
    secret = held.add("ada")
    id = secret.split("-")[1]
    compared, compare = [], hmac.compare_digest

    def counted(left, right):
        compared.append((len(left), len(right)))
        return compare(left, right)

    monkeypatch.setattr(keys.hmac, "compare_digest", counted)
    for wrong in (f"tp-{id}-{'x' * 43}", f"tp-{'0' * 12}-{'x' * 43}", secret[:-1] + "x", "tp-"):
        assert held.caller(wrong) is None
    assert compared == [(64, 64)] * 4


@pytest.mark.serial
def test_ten_thousand_wrong_keys_take_the_same_time_whether_the_id_is_known_or_not(file):
    held = Keys(file)
    id = held.add("ada").split("-")[1]
    times = {"known": [], "unknown": []}
    for k in range(5000):
        for name, of in (("known", id), ("unknown", "0" * 12)):
            began = time.perf_counter()
            held.caller(f"tp-{of}-{k:043}")
            times[name].append(time.perf_counter() - began)
    known, unknown = (statistics.median(one) for one in times.values())
    assert abs(known - unknown) < 0.2 * min(known, unknown)
