"""What prompts say in A1111's syntax."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from triptych_contract.emphasis import MAX_WEIGHT, sections
from triptych_contract.errors import InvalidRequest
from triptych_contract.sdxl.settings import SdxlSettings

from ..cards import card

# As A1111's documents tell it: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#attentionemphasis
CASES = {
    "a fox": [[("a fox", 1)]],
    "": [[]],
    "a (red) fox": [[("a ", 1), ("red", 1.1), (" fox", 1)]],
    "a ((red)) fox": [[("a ", 1), ("red", 1.21), (" fox", 1)]],
    "a [red] fox": [[("a ", 1), ("red", 1 / 1.1), (" fox", 1)]],
    "a (red:1.5) fox": [[("a ", 1), ("red", 1.5), (" fox", 1)]],
    "a (red:0.25) fox": [[("a ", 1), ("red", 0.25), (" fox", 1)]],
    "a (red : .5 ) fox": [[("a ", 1), ("red ", 0.5), (" fox", 1)]],
    "a (red:-1) fox": [[("a ", 1), ("red", -1), (" fox", 1)]],
    r"a \(red\) fox": [[("a (red) fox", 1)]],
    r"a \[red\] \\ fox": [[("a [red] \\ fox", 1)]],
    r"a (\(red:1.5\):2)": [[("a ", 1), ("(red:1.5)", 2)]],
    r"\a": [[("a", 1)]],
    "(a (red:2) fox:0.5)": [[("a ", 0.5), ("red", 1), (" fox", 0.5)]],
    "(a)(b)": [[("ab", 1.1)]],
    "(open": [[("open", 1.1)]],
    "[open": [[("open", 1 / 1.1)]],
    "closed) or ]": [[("closed) or ]", 1)]],
    "closed:1.5)": [[("closed:1.5)", 1)]],
    "([a)b]": [[("a", 1), ("b", 1 / 1.1)]],
    "(a:b:1.5)": [[("a:b", 1.5)]],
    "(at 16:9)": [[("at 16", 9)]],
    "16:9 (a:1.2.3)": [[("16:9 ", 1), ("a:1.2.3", 1.1)]],
    "[from:to]": [[("from:to", 1 / 1.1)]],
    "one|other": [[("one|other", 1)]],
    "a BREAK b": [[("a", 1)], [("b", 1)]],
    "a\nBREAK\nb": [[("a", 1)], [("b", 1)]],
    "(a BREAK b:1.5)": [[("a", 1.5)], [("b", 1.5)]],
    "BREAK a": [[], [("a", 1)]],
    "a BREAK BREAK b": [[("a", 1)], [], [("b", 1)]],
    "BREAKFAST break": [[("BREAKFAST break", 1)]],
}


@pytest.mark.parametrize("prompt", CASES)
def test_a_prompt_says_what_a1111_documents(prompt):
    read, wanted = sections("prompt", prompt), CASES[prompt]
    assert [[part.text for part in section] for section in read] == [[text for text, _ in s] for s in wanted]
    weights = [part.weight for section in read for part in section]
    assert weights == pytest.approx([weight for section in wanted for _, weight in section])


@pytest.mark.parametrize(
    ("prompt", "given", "legal"),
    [
        ("a (red:10.5) fox", "weight 10.5 of 'red'", "-10 … 10"),
        ("(" * 30 + "red", "weight 17.45 of 'red'", "-10 … 10"),
        ("(red:" + "9" * 400 + ")", "weight inf of 'red'", "-10 … 10"),
        ("a [fox:cat:0.5]", "':0.5]' in [ ]", "weights only"),
        ("a [fox:0.5]", "':0.5]' in [ ]", "weights only"),
        ("a [fox|cat]", "'fox|cat' in [ ]", "weights only"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_field(prompt, given, legal):
    for field in ("prompt", "negative_prompt"):
        with pytest.raises(InvalidRequest) as error:
            SdxlSettings.parse({"prompt": "a fox", field: prompt, "prompt_syntax": "a1111"}, card())
        (problem,) = error.value.problems
        assert (problem.field, problem.given) == (field, given)
        assert problem.legal.startswith(legal)


def test_plain_prompts_are_what_they_are():
    settings = SdxlSettings.parse({"prompt": "a [fox|cat] (x:99)"}, card())
    assert settings.sections(settings.prompt) == [[("a [fox|cat] (x:99)", 1.0)]]


@given(st.text("ab :.|019()[]\\\nBREAK-", max_size=60) | st.text(max_size=60))
@example("(" * 5000)
@example("(a" * 5000)
@example("[" * 5000 + "(a:0.5)" * 1000)
def test_any_text_is_read_or_refused_and_no_word_is_made_up(prompt):
    try:
        read = sections("prompt", prompt)
    except InvalidRequest as error:
        assert error.field == "prompt"
        return
    parts = [part for section in read for part in section]
    assert all(part.text and abs(part.weight) <= MAX_WEIGHT for part in parts)
    assert all(one.weight != next.weight for section in read for one, next in itertools.pairwise(section))
    letters = iter(prompt)
    assert all(letter in letters for part in parts for letter in part.text)  # in the prompt's order
