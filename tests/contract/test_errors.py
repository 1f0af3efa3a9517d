"""An error on its way from a model to a caller: Triton carries one text, people read lines, programs the last of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych_contract.errors import (
    SHOWN_CHARACTERS,
    WIRE_CHARACTERS,
    InvalidRequest,
    Problem,
    from_wire,
    invalid,
    shown,
    to_wire,
)

STEPS = Problem("num_inference_steps", "0", "1 … 100")
FORMAT = Problem("output_format", "'bmp'", "png, jpeg, webp")
PREFIX = "in ensemble 'sdxl', "

problems = st.lists(st.builds(Problem, *[st.text(max_size=80)] * 3), min_size=1, max_size=6)


def test_the_error_has_a_line_for_each_problem_and_the_first_field():
    error = InvalidRequest([STEPS, FORMAT])
    assert str(error) == (
        "num_inference_steps: 0 given; legal: 1 … 100\noutput_format: 'bmp' given; legal: png, jpeg, webp"
    )
    assert error.field == "num_inference_steps"


def test_a_problem_of_no_field_is_the_requests():
    assert str(invalid("", "a list", "inputs by name")) == "request: a list given; legal: inputs by name"


def test_programs_find_the_problems_as_json_in_the_last_line():
    *lines, tail = to_wire(InvalidRequest([STEPS, FORMAT])).split("\n")
    assert lines == [str(STEPS), str(FORMAT)]
    assert json.loads(tail) == {"problems": [STEPS._asdict(), FORMAT._asdict()]}


@given(problems)
def test_what_comes_back_is_what_was_sent_with_long_values_cut(sent):
    received = from_wire(to_wire(InvalidRequest(sent)), "7")
    cut = [problem.cut for problem in sent]
    assert list(received.problems) == cut[: len(received.problems)]
    assert len(received.problems) == len(cut) or f"and {len(cut) - len(received.problems)} more" in str(received)
    assert received.request_id == "7"


@pytest.mark.parametrize("prefix", [PREFIX, "in ensemble 'stable_cascade', "])
def test_tritons_words_before_it_do_not_hide_the_problems(prefix):
    received = from_wire(prefix + to_wire(InvalidRequest([STEPS, FORMAT])))
    assert received.problems == (STEPS, FORMAT)
    assert str(received) == f"{prefix}{STEPS}\n{FORMAT}"


@given(st.text())
def test_what_was_given_is_one_line_of_60_characters_at_most(text):
    for cut in Problem(text, text, "anything").cut[:2]:
        assert len(cut) <= SHOWN_CHARACTERS
        assert cut.isprintable()
        assert cut == text or len(text) > SHOWN_CHARACTERS or not text.isprintable()


def test_60_characters_are_kept_and_61_cut():
    assert Problem("prompt", "x" * 60, "").cut.given == "x" * 60
    assert Problem("prompt", "x" * 61, "").cut.given == "x" * 59 + "…"


def test_the_text_fits_into_a_header_however_much_is_wrong():
    many = [Problem(f"input_{number}", "ä" * 5_000_000, "nothing") for number in range(30)]
    text = to_wire(InvalidRequest(many))
    received = from_wire(text)
    assert len(text) <= WIRE_CHARACTERS
    assert 1 < len(received.problems) < 30
    assert str(received).endswith(f"and {30 - len(received.problems)} more")
    assert 9 * sum(character > "\x7f" for character in text) + len(text) < 8_192


@pytest.mark.parametrize(
    "message",
    [
        "",
        "expected 1 inputs but got 2 inputs for model 'sdxl'",
        "a line\n{",
        "a line\n{}",
        'a line\n{"problems": 7}',
        'a line\n{"problems": [7]}',
        'a line\n{"problems": {"field": 1}}',
        'a line\n{"problems": [{"field": "seed"}]}',
        'a line\n{"problems": [{"field": "seed", "given": "1", "legal": "0", "more": "x"}]}',
        'a line\n{"problems": [{"field": null, "given": 1, "legal": []}]}',
        'a line\n{"problems": ' + "[" * 100_000,
        'a line\n{"problems": [' + "9" * 5_000 + "]}",
    ],
)
def test_words_of_another_are_an_error_without_problems(message):
    received = from_wire(message)
    assert received.problems == ()
    assert str(received) == message
    assert received.field == ""


def test_an_error_without_problems_goes_as_its_words():
    assert to_wire(InvalidRequest(message="model: no such model")) == "model: no such model"


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a\n", r"'a\n'"),
        (nested(100_000), "a list too large to show"),
        (10**5_000, "a int too large to show"),
        ({"a": nested(100_000)}, "a dict too large to show"),
    ],
    ids=["text", "list", "number", "dict"],
)
def test_any_value_can_be_shown(value, words):
    assert shown(value) == words
    assert invalid("seed", value, "less").problems[0].given == (value if isinstance(value, str) else words)
