"""The kinds of parameters: which values they take, and how they are told."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from triptych_contract.adapters import Adapter, Adapters
from triptych_contract.control import Control, Controls
from triptych_contract.errors import InvalidRequest
from triptych_contract.families import FAMILIES
from triptych_contract.parameters import (
    MAX_INT64,
    Choice,
    File,
    Files,
    Flag,
    Integer,
    LongInteger,
    Number,
    OfModel,
    Pair,
    Picture,
    Text,
    is_control,
)
from triptych_contract.verbs import DATATYPES, INPUTS

from ..cards import REFINER, card, cascade_card

STEPS, SHARE = Integer(1, 100), Number(0, 1)
CARDS = {"sdxl": card(refiner=REFINER), "stable_cascade": cascade_card()}
ALL = [(family, one) for family in FAMILIES.values() for one in family.parameters.values()]
each_parameter = pytest.mark.parametrize(("family", "one"), ALL, ids=[f"{f.name}-{one.name}" for f, one in ALL])


def taken(kind, value):
    return kind.check("it", kind.typed("it", value))


@pytest.mark.parametrize(
    ("kind", "value", "means"),
    [
        (STEPS, 20.0, 20),
        (STEPS, np.int64(20), 20),
        (STEPS, np.float32(20), 20),
        (LongInteger(0, MAX_INT64), MAX_INT64, MAX_INT64),
        (SHARE, 0, 0.0),
        (SHARE, 1, 1.0),
        (SHARE, np.float32(0.5), 0.5),
        (SHARE, Fraction(1, 4), 0.25),
        (Flag(), True, True),
        (Flag(), 0, False),
        (Flag(), np.True_, True),
        (Text(8), "ä\t\r\n".encode(), "ä\t\r\n"),
        (Text(8), " ", " "),
        (Choice(("a", "b"), {"first": "a"}), "FIRST", "a"),
        (Choice(("a", "b")), b"b", "b"),
        (Pair(0, 9, ("top", "left")), [1, 2.0], (1, 2)),
        (Pair(0, 9, ("top", "left")), np.array([1, 2]), (1, 2)),
        (File(), {"sha256": "0", "height": 2, "width": 3}, Picture("0", 2, 3)),
        (Adapters(), '[{"name": "ink", "scale": 0.5}, {"name": "fog"}]', (Adapter("ink", 0.5), Adapter("fog"))),
        (Adapters(), b"ink:0.5, a:b:-2,fog", (Adapter("ink", 0.5), Adapter("a:b", -2.0), Adapter("fog"))),
        (Adapters(), [{"name": "ink", "sha256": "0"}], (Adapter("ink", 1.0, "0"),)),
        (Adapters(), (Adapter("ink", 2),), (Adapter("ink", 2.0),)),
        (Adapters(), "[]", ()),
        (Controls(), "edges, depth:0.5:0.25-1", (Control("edges", 0), Control("depth", 1, 0.5, 0.25))),
        (Controls(), '[{"name": "edges", "image": 3, "end": 0.5}]', (Control("edges", 3, 1.0, 0.0, 0.5),)),
        (Controls(), (Control("edges", 2, 1),), (Control("edges", 2, 1.0),)),
        (Files(2), [{"sha256": "0", "height": 2, "width": 3}], (Picture("0", 2, 3),)),
    ],
)
def test_what_means_a_legal_value_is_that_value(kind, value, means):
    assert taken(kind, value) == means
    assert type(taken(kind, value)) is type(means)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (STEPS, 2.5, "2.5 given; legal: a whole number below 2^31"),
        (STEPS, True, "True given; legal: a number"),
        (STEPS, "20", "'20' given; legal: a number"),
        (STEPS, None, "None given; legal: a number"),
        (STEPS, math.nan, "nan given; legal: a whole number"),
        (STEPS, math.inf, "inf given; legal: a whole number"),
        (STEPS, 10**400, "given; legal: a whole number below 2^31"),
        (STEPS, 0, "0 given; legal: 1 … 100"),
        (LongInteger(0, MAX_INT64), 2**63, "given; legal: a whole number below 2^63"),
        (LongInteger(0, MAX_INT64), -1, "-1 given; legal: 0 …"),
        (SHARE, math.nan, "nan given; legal: 0 … 1"),
        (SHARE, -math.inf, "-inf given; legal: 0 … 1"),
        (SHARE, False, "False given; legal: a number"),
        (SHARE, 1 + 2j, "(1+2j) given; legal: a number"),
        (SHARE, 1e39, "1e+39 given; legal: a number that 32 bits can hold"),
        (SHARE, 10**400, "given; legal: a number that 32 bits can hold"),
        (SHARE, 1.0000001, "1.0000001 given; legal: 0 … 1"),
        (Number(0, 1, between=True), 1, "1 given; legal: over 0, under 1"),
        (Number(0, 1, between=True), 0, "0 given; legal: over 0, under 1"),
        (Flag(), 7, "7 given; legal: true or false"),
        (Flag(), "true", "'true' given; legal: true or false"),
        (Flag(), 1.0, "1.0 given; legal: true or false"),
        (Text(8), 7, "7 given; legal: a text"),
        (Text(8), "ääääa", "9 bytes given; legal: at most 8 bytes of UTF-8"),
        (Text(8), "a\x9bb", "control character U+009B at 1 given"),
        (Text(8), "\x7f", "control character U+007F at 0 given"),
        (Text(8), "\ud800", "a character that is not Unicode at 0 given; legal: UTF-8 text"),
        (Text(8), b"a\xff", "byte 0xff at 1 given; legal: UTF-8 text"),
        (Text(8, blank=False), "\N{NO-BREAK SPACE}", "a blank text given"),
        (Choice(("a", "b")), "c", "'c' given; legal: a, b"),
        (Choice(("a", "b")), ["a"], "['a'] given; legal: a text"),
        (Pair(0, 9, ("top", "left")), (1, 10), "10 given; legal: 0 … 9"),
        (Pair(0, 9, ("top", "left")), (1, True), "True given; legal: a number"),
        (Pair(0, 9, ("top", "left")), "12", "'12' given; legal: two whole numbers, top and left"),
        (Pair(0, 9, ("top", "left")), [1], "[1] given; legal: two whole numbers, top and left"),
        (File(), b"PNG", "a bytes given; legal: what a picture's header says of it"),
        (File(), {}, "None given; legal: a text"),
        (File(), {"sha256": "0" * 65, "height": 2, "width": 3}, "65 bytes given"),
        (File(), {"sha256": "0", "height": 0, "width": 3}, "0 given; legal: 1 …"),
        (Adapters(), 7, "7 given; legal: [{"),
        (Adapters(), "[7]", "7 given; legal: [{"),
        (Adapters(), "[" * 2000, "given; legal: [{"),
        (Adapters(), '[{"name": "ink", "sha256": "0"}]', "given; legal: [{"),
        (Adapters(), [{"name": "ink", "weight": 1}], "given; legal: [{"),
        (Adapters(), '[{"name": "ink", "scale": true}]', "ink with scale True given; legal: a number as scale"),
        (Adapters(), [{"name": "ink", "scale": 10**400}], "ink with a scale too large given"),
        (Adapters(), "ink:4.01", "ink with scale 4.01 given; legal: a scale of -4 … 4"),
        (Adapters(), "ink:nan", "ink with scale nan given; legal: a scale of -4 … 4"),
        (Adapters(), "ink, ink:2", "ink twice given; legal: each adapter once"),
        (Adapters(), ":2", "':2' given; legal: NAME or NAME:0.8"),
        (Adapters(), ",".join("abcdefghi"), "9 adapters given; legal: at most 8"),
        (Adapters(), [{"name": " "}], "a blank text given"),
        (Controls(), 7, "7 given; legal: [{"),
        (Controls(), [["edges"]], "['edges'] given; legal: [{"),
        (Controls(), '[{"name": "edges", "sha256": "0"}]', "given; legal: [{"),
        (Controls(), '[{"name": "edges", "image": -1}]', "edges with image -1 given; legal: a place in control_images"),
        (Controls(), '[{"name": "edges", "image": true}]', "edges with image True given"),
        (Controls(), '[{"name": "edges", "scale": "much"}]', "edges with scale 'much' given; legal: a number as scale"),
        (Controls(), '[{"name": "edges", "start": null}]', "edges with start None given; legal: a number as start"),
        (Controls(), "edges:", "'edges:' given; legal: NAME, NAME:0.8 or NAME:0.8:0-0.5"),
        (Controls(), ":1", "':1' given; legal: NAME, NAME:0.8"),
        (Controls(), "edges:4.5", "edges with scale 4.5 given; legal: a scale of 0 … 4"),
        (Controls(), "edges:-1", "edges with scale -1 given; legal: a scale of 0 … 4"),
        (Controls(), "edges:nan", "edges with scale nan given; legal: a scale of 0 … 4"),
        (Controls(), "edges:1:0.5-0.5", "edges from 0.5 to 0.5 given; legal: 0 ≤ start < end ≤ 1"),
        (Controls(), "edges:1:0.5-1.5", "edges from 0.5 to 1.5 given; legal: 0 ≤ start < end ≤ 1"),
        (Controls(), "a,b,c,d,e", "5 controls given; legal: at most 4"),
        (Files(2), 7, "a int given; legal: a list of pictures"),
        (Files(2), [], "0 pictures given; legal: 1 … 2"),
        (Files(2), [Picture("0", 2, 3)] * 3, "3 pictures given; legal: 1 … 2"),
        (Adapters(), [{"name": "a\x1b"}], "control character U+001B at 1 given"),
    ],
)
def test_what_is_not_legal_is_named(kind, value, words):
    with pytest.raises(InvalidRequest) as error:
        taken(kind, value)
    assert str(error.value).startswith("it: ")
    assert words in str(error.value)


def test_no_text_moves_a_terminals_cursor():
    passed = {chr(code) for code in range(0x110000) if not is_control(chr(code))}
    assert {chr(code) for code in [*range(32), *range(127, 160)]} - passed == {
        chr(code) for code in [*range(9), 11, 12, *range(14, 32), *range(127, 160)]
    }


@each_parameter
def test_every_parameter_is_told_completely(family, one):
    assert one.words.endswith(".")
    assert one.words[0].isupper()
    assert one.kind.legal
    assert one.told_default
    assert one.group or one.required or one.delivery
    assert not (one.required and one.default is not None)
    assert one.needs in {"", *family.parameters}
    assert one.kind.datatype in ("BOOL", "BYTES", "FP32", "INT32", "INT64")
    assert one.kind.count in (-1, 1, 2, 4)


@each_parameter
def test_every_limit_can_be_read_off_a_card(family, one):
    bound = one.of(CARDS[family.name])
    assert not [value for value in (bound.default, *vars(bound.kind).values()) if isinstance(value, OfModel)]
    assert bound.kind.legal


@each_parameter
def test_every_default_is_legal(family, one):
    bound = one.of(CARDS[family.name])
    if bound.default is not None and bound.default != "":
        assert taken(bound.kind, bound.default) == bound.default


def test_a_name_is_sent_as_one_type_by_whomever_it_is_read():
    declared = [(name, one.kind.datatype) for family in FAMILIES.values() for name, one in family.parameters.items()]
    assert {(name, kind.datatype) for name, kind in INPUTS.items()} | set(declared) == set(DATATYPES.items())


def test_no_two_parameters_have_one_spelling():
    for family in FAMILIES.values():
        spelt = [option for one in family.parameters.values() for option in one.options]
        foreign = [one.a1111 for one in family.parameters.values() if one.a1111]
        assert len(spelt) == len(set(spelt))
        assert len(foreign) == len(set(foreign))
