"""What processes and the supervisor tell each other by way of files, and what is kept for those who ask again."""

from __future__ import annotations

import numpy as np
import pytest

from triptych_contract.sdxl.settings import SdxlSettings
from triptych_serving.kept import SECONDS, Kept
from triptych_serving.record import LATE_S, Record, note_replaced, read

from ..cards import card
from .loop import FakeClock

LATENTS = np.zeros((4, 8, 8), np.float32)


@pytest.fixture
def record(tmp_path):
    record = Record()
    record.begin("decoder", {"TRIPTYCH_RECORDS": str(tmp_path)})
    return record


def test_the_longest_work_in_progress_is_noted_with_what_is_allowed_for_it(record, tmp_path):
    def noted():
        counts = read(tmp_path)["decoder"]
        return counts.work, counts.allowed_ms

    with record.work(None):
        assert noted() == (0, 0)
    with record.work(1.0):
        assert noted() == (1, 50_000)
        with record.work(0.001):
            assert noted() == (1, 50_000)
    with record.work(0.001):
        assert noted() == (3, LATE_S * 1000)
    assert noted() == (0, 0)


def test_ensembles_that_began_before_a_model_was_back_cannot_have_its_answer(record, tmp_path):
    assert record.replaced(["decoder"], since=5.0) == ""
    note_replaced(tmp_path, {"decoder": None})
    assert record.replaced(["encoder", "decoder"], since=5.0) == "decoder"
    note_replaced(tmp_path, {"decoder": 7.0})
    assert record.replaced(["decoder"], since=6.9) == "decoder"
    assert record.replaced(["decoder"], since=7.1) == ""
    assert record.replaced(["encoder"], since=5.0) == ""
    assert [*read(tmp_path)] == ["decoder"]  # what it was told is no model's page


def test_requests_that_wait_for_this_process_alone_are_told_apart(record, tmp_path):
    record.take(2)
    record.take(1, kept=True)
    assert read(tmp_path)["decoder"][2:5] == (3, 0, 1)
    record.answer(2, passed=True)
    record.answer(1, passed=False, kept=True)
    assert read(tmp_path)["decoder"][2:5] == (0, 2, 0)


def settings(**given):
    return SdxlSettings.parse({"prompt": b"a fox", "seed": 3, **given}, card())


def test_who_asks_for_the_same_under_the_same_id_gets_what_was_finished():
    kept = Kept()
    kept.put("id", settings(tenant=b"me"), {"queue_ms": 1}, LATENTS)
    report, latents = kept.get("id", settings(tenant=b"me", deadline_ms=500))
    assert report == {"queue_ms": 1}
    assert latents is LATENTS
    assert kept.get("another", settings(tenant=b"me")) is None
    for other in ({"tenant": b"you"}, {"tenant": b"me", "seed": 4}, {"tenant": b"me", "num_inference_steps": 3}, {}):
        assert kept.get("id", settings(**other)) is None


def test_what_is_kept_is_bounded_in_bytes_and_time():
    clock = FakeClock()
    kept = Kept(most_bytes=2 * LATENTS.nbytes, clock=clock)
    for id in "abca":
        kept.put(id, settings(), {}, LATENTS)
    assert [id for id in "abc" if kept.get(id, settings())] == ["a", "c"]
    clock.now += SECONDS
    assert not any(kept.get(id, settings()) for id in "abc")
    kept.put("d", settings(), {}, LATENTS)
    kept.put("e", settings(), {}, LATENTS)
    assert [id for id in "de" if kept.get(id, settings())] == ["d", "e"]
