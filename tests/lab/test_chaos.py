"""The ledger of `make chaos` and the measure of `make soak`: what is wrong is found, and what is right is not."""

from __future__ import annotations

import itertools

import pytest

from triptych import Overloaded, ServerError
from triptych_lab.chaos.faults import Fault, plan
from triptych_lab.chaos.ledger import Ledger
from triptych_lab.chaos.soak import growth

MUST_BE_NONE = ("lost", "doubled", "differing", "late", "other errors")


@pytest.fixture
def ledger():
    """Of one request that was drawn and one that was refused, as they should be."""
    ledger = Ledger({"fox": b"a fox", "hen": b"a hen"})
    ledger.ended(ledger.sent("fox"), b"a fox")
    ledger.ended(ledger.sent("hen", timeout_s=60), Overloaded("full"))
    return ledger


def wrong(ledger):
    figures = ledger.figures()
    return {name: figures[name] for name in MUST_BE_NONE if figures[name]}


def test_what_ends_as_it_should_is_not_wrong(ledger):
    assert not wrong(ledger)
    assert [ledger.figures()[name] for name in ("sent", "images", "named errors")] == [2, 1, 1]
    assert ledger.errors() == [("Overloaded: full", 1)]


@pytest.mark.parametrize(
    ("outcomes", "found"),
    [
        ([], "lost"),
        ([b"a fox", b"a fox"], "doubled"),
        ([b"a fox", Overloaded("full")], "doubled"),
        ([b"a hen"], "differing"),
        ([ServerError("a defect")], "other errors"),
        ([KeyError("a defect of ours")], "other errors"),
    ],
)
def test_what_does_not_is(ledger, outcomes, found):
    entry = ledger.sent("fox")
    for outcome in outcomes:
        ledger.ended(entry, outcome)
    assert wrong(ledger) == {found: 1}


def test_an_answer_after_its_time_is_late(ledger):
    entry = ledger.sent("fox", timeout_s=-60)
    ledger.ended(entry, b"a fox")
    assert wrong(ledger) == {"late": 1}


def test_a_seed_gives_the_same_faults_again_and_each_comes_once_before_any_comes_twice():
    models = ["denoise", "tokenizer", "vae_decoder"]
    first, again, other = (list(itertools.islice(plan(seed, models), 22)) for seed in (1, 1, 2))
    assert first == again != other
    assert set(first[:11]) == set(first[11:]) - {Fault("stop", "tokenizer"), Fault("stop", "vae_decoder")} | {
        fault for fault in first[:11] if fault.what == "stop"
    }
    assert {Fault("kill", name) for name in (*models, "tritonserver")} <= set(first[:11])


def test_memory_that_grows_is_told_from_memory_that_wavers():
    steady = growth([(second, 300 + second % 7) for second in range(0, 3600, 5)])
    assert steady.fits
    assert abs(steady.slope) < 3 * steady.error
    leaking = growth([(second, 300 + second % 7 + second / 60) for second in range(0, 3600, 5)])
    assert not leaking.fits
    assert leaking.slope == pytest.approx(60, abs=3 * leaking.error)
    assert leaking.more == pytest.approx(30, rel=0.01)
