"""Workload files: what is written is read, what is wrong is named, and what is drawn has the rate that was asked for."""

from __future__ import annotations

import itertools
import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import InvalidRequest
from triptych_lab.workload import ARRIVALS, Arrival, Mix, load, make, save

GOOD = {"interval_s": 0.5, "prompt": "a fox", "num_inference_steps": 4}


def one(tmp_path, document):
    path = tmp_path / "w.jsonl"
    path.write_text(json.dumps(document) + "\n")
    return list(load(path))


@given(
    st.lists(
        st.builds(
            Arrival,
            st.floats(0, 1e6),
            st.fixed_dictionaries(
                {"prompt": st.text(st.characters(exclude_categories=["Cs"]))},
                optional={
                    "seed": st.integers(0, 2**63 - 1),
                    "guidance_scale": st.floats(0, 50, width=32),
                    "original_size": st.lists(st.integers(1, 99), min_size=2, max_size=2),
                },
            ),
        ),
        min_size=1,
    )
)
def test_what_is_written_is_read(tmp_path_factory, arrivals):
    path = tmp_path_factory.mktemp("workload") / "w.jsonl"
    assert save(path, arrivals) == len(arrivals)
    assert list(load(path)) == arrivals


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"interval_s": -1}, "interval_s: -1 given"),
        ({"interval_s": None}, "interval_s: null given"),
        ({"interval_s": True}, "interval_s: true given"),
        ({"interval_s": float("nan")}, "interval_s: NaN given"),
        ({"prompt": None}, "prompt: null given"),
        ({"prompt": 5}, "prompt: 5 given"),
        ({"steps": 5}, "steps: an unknown parameter given"),
        ({"num_inference_steps": "many"}, "num_inference_steps: 'many' given"),
        ({"prior_guidance_scale": 4.0}, "prior_guidance_scale: a parameter of stable_cascade and not of sdxl given"),
    ],
)
def test_a_wrong_line_is_named_with_its_field(tmp_path, change, field):
    with pytest.raises(InvalidRequest) as caught:
        one(tmp_path, {**GOOD, **change})
    assert f"w.jsonl:1: {field}" in str(caught.value)
    assert "legal: " in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [("[1]", "a list given"), ("{", "no JSON"), ("\n\n", "an empty file")])
def test_what_is_no_workload_is_refused(tmp_path, text, words):
    path = tmp_path / "w.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=words):
        list(load(path))


def test_the_number_of_a_wrong_line_counts_blank_ones(tmp_path):
    path = tmp_path / "w.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n{}\n")
    with pytest.raises(InvalidRequest, match=r"w\.jsonl:3: interval_s"):
        list(load(path))


@pytest.mark.parametrize("name", sorted(ARRIVALS))
def test_arrivals_come_at_their_rate(name):
    intervals = [arrival.interval_s for arrival in make(Mix(), rate=7.0, count=40_000, arrivals=name)]
    assert statistics.fmean(intervals) == pytest.approx(1 / 7, rel=0.06)


def test_bursts_vary_more_than_poisson_and_constant_arrivals_not_at_all():
    """The squared coefficient of variation: 1 for exponential intervals."""
    spread = {}
    for name in ARRIVALS:
        intervals = [arrival.interval_s for arrival in make(Mix(), rate=3.0, count=20_000, arrivals=name)]
        spread[name] = statistics.pvariance(intervals) / statistics.fmean(intervals) ** 2
    assert spread["constant"] == pytest.approx(0, abs=1e-12)
    assert spread["poisson"] == pytest.approx(1, rel=0.05)
    assert spread["bursts"] > 5


def test_another_rate_brings_the_same_requests():
    slow, fast = (list(make(Mix(), rate=rate, count=50, seed=3)) for rate in (1, 10))
    assert [arrival.parameters for arrival in slow] == [arrival.parameters for arrival in fast]
    assert [arrival.interval_s for arrival in slow] == pytest.approx([arrival.interval_s * 10 for arrival in fast])


def test_without_a_count_there_is_no_end():
    assert len(list(itertools.islice(make(Mix(), rate=1), 2500))) == 2500


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
@pytest.mark.parametrize("arrivals", sorted(ARRIVALS))
def test_a_rate_that_is_none_is_refused(rate, arrivals):
    with pytest.raises(InvalidRequest, match="rate: "):
        next(make(Mix(), rate=rate, arrivals=arrivals))


def test_unknown_arrivals_and_empty_choices_are_refused():
    with pytest.raises(InvalidRequest, match="arrivals: 'often' given; legal: poisson, bursts, constant"):
        make(Mix(), rate=1, arrivals="often")
    with pytest.raises(InvalidRequest, match="height: no value given"):
        Mix({"height": ()})
