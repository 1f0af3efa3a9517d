"""Whatever JSON comes, reading it ends with settings or with an error that says what is wrong, and with nothing else."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych_contract.errors import SHOWN_CHARACTERS, WIRE_CHARACTERS, InvalidRequest, from_wire, to_wire
from triptych_contract.families import FAMILIES
from triptych_contract.parameters import MAX_INT64

from ..cards import REFINER, card, cascade_card
from .test_errors import nested

CARDS = {"sdxl": card(refiner=REFINER), "stable_cascade": cascade_card()}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def pictures(inner):
    return st.fixed_dictionaries({}, optional={"sha256": inner, "height": inner, "width": inner})


# Also what Python's json reads beyond the standard: NaN, Infinity, halves of surrogate pairs.
texts = st.text(st.characters(exclude_categories=()), max_size=70)
numbers = st.one_of(st.integers(), st.integers(-2, 300), st.floats(), st.sampled_from([10**400, MAX_INT64, 0.8, 1e39]))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts, st.sampled_from(["euler", "karras", "png", "a fox"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3), pictures(inner)),
    max_leaves=8,
)


def requests(family):
    names = st.one_of(st.sampled_from([*family.parameters]), texts)
    asked = st.dictionaries(names, values, max_size=8)
    return st.one_of(values, asked, asked.map(lambda others: {"prompt": "a fox", **others}))


def read(family, document):
    return family.settings.parse(document, CARDS[family.name])


@each_family
@given(st.data())
def test_any_document_is_settings_or_an_error_that_can_be_sent(family, data):
    document = data.draw(requests(family))
    try:
        settings = read(family, document)
    except InvalidRequest as error:
        text = to_wire(error)
        assert len(text) <= WIRE_CHARACTERS or len(from_wire(text).problems) == 1
        assert from_wire(text.encode("utf-8").decode()).problems == error.problems[: len(from_wire(text).problems)]
        assert all(len(problem.given) <= SHOWN_CHARACTERS for problem in error.problems)
    else:
        assert read(family, json.loads(json.dumps(settings.to_json()))) == settings


@each_family
@pytest.mark.parametrize(
    ("document", "given"),
    [(7, "a int"), ([], "a list"), (None, "a NoneType"), ("prompt", "a str"), ([["prompt", "a fox"]], "a list")],
)
def test_a_document_of_no_inputs_is_refused(family, document, given):
    with pytest.raises(InvalidRequest, match=f"^request: {given} given; legal: inputs by name$"):
        read(family, document)


@each_family
def test_lists_in_lists_are_refused_by_name_however_deep(family):
    deep = nested(100_000)
    with pytest.raises(InvalidRequest) as error:
        read(family, dict.fromkeys([*family.parameters, "colour"], deep))
    assert list(dict.fromkeys(problem.field for problem in error.value.problems)) == ["colour", *family.parameters]
    assert {problem.given for problem in error.value.problems if problem.field == "seed"} == {
        "a list too large to show"
    }


@each_family
def test_nan_is_legal_nowhere(family):
    with pytest.raises(InvalidRequest) as error:
        read(family, dict.fromkeys(family.parameters, math.nan))
    assert {problem.field for problem in error.value.problems} == {*family.parameters}


@each_family
def test_all_problems_are_told_at_once_in_the_contracts_order(family):
    wrong = {"tenant": 7, "output_format": "bmp", "width": 1, "seed": -1, "zebra": 1, "apple": 2, "prompt": ""}
    for order in (wrong, dict(reversed(wrong.items()))):
        with pytest.raises(InvalidRequest) as error:
            read(family, order)
        fields = [problem.field for problem in error.value.problems]
        assert fields == ["apple", "zebra", "prompt", "seed", "width", "output_format", "tenant"]


@each_family
def test_a_name_that_nobody_has_is_shown_short(family):
    with pytest.raises(InvalidRequest) as error:
        read(family, {"prompt": "a fox", "x" * 5_000_000: 1, "a\nb": 1, "\ud800": 1})
    assert [problem.field for problem in error.value.problems] == [r"'a\nb'", "x" * 59 + "…", r"'\ud800'"]


@each_family
def test_a_json_null_is_not_given(family):
    assert read(family, {**dict.fromkeys(family.parameters), "prompt": "a fox", "seed": 7}) == read(
        family, {"prompt": "a fox", "seed": 7}
    )
