"""Whatever strangers write, reading it ends with a value or the reader's own error; `python -m tests.fuzz` tries for longer."""

from __future__ import annotations

import contextlib
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .targets import TARGETS, mutated, tried


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_no_bytes_make_a_reader_fail(name, seed, tmp_path):
    tried(TARGETS[name], mutated(random.Random(seed), TARGETS[name]), tmp_path)


@pytest.mark.parametrize("name", TARGETS)
def test_the_readers_begin_with_what_they_can_read(name, tmp_path):
    """Else they would refuse everything for the same reason."""
    target, read = TARGETS[name], 0
    for example in target.examples:
        with contextlib.suppress(*target.refuses):
            target.read(example, tmp_path)
            read += 1
    assert read


def nested(name: str) -> bytes:
    return b"[" * 100_000 if name != "receipt's text" else b'{"a":' * 100_000


def changed(name: str, **changes) -> bytes:
    document = json.loads(TARGETS[name].examples[0])
    return json.dumps({**document, **changes}).encode()


def card_with(**changes) -> bytes:
    return changed("manifest", model={**json.loads(TARGETS["manifest"].examples[0])["model"], **changes})


DIGITS = b'{"seed": ' + b"9" * 10_000 + b"}"
FOUND = [
    ("workload", b"\xff\xfe{\0}\0"),
    ("workload", changed("workload", interval_s="x" * 50_000)),
    ("costs", changed("costs", encode_s=10**400)),
    ("costs", changed("costs", points=["x" * 50_000])),
    (
        "unpacked tables",
        TARGETS["unpacked tables"].examples[0].replace(b"'fortran_order': False", b"'fortran_order': ((((("),
    ),
    ("unpacked tables", TARGETS["unpacked tables"].examples[0].replace(b"PK\1\2\x2d\3\x2d", b"PK\1\2\x2d\3\xff")),
    ("receipt's text", changed("receipt's text", family="x" * 50_000)),
    ("manifest", card_with(size_multiple=0)),
    ("manifest", card_with(min_size=10_000)),
    ("manifest", card_with(default_sampler="", samplers={})),
    ("manifest", card_with(default_guidance_scale="FAR").replace(b'"FAR"', b"1e999")),
    *((name, DIGITS) for name in ("config", "manifest", "workload", "costs", "receipt's text")),
    *((name, nested(name)) for name in ("config", "manifest", "workload", "costs", "receipt's text")),
]


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_is_refused(name, data, tmp_path):
    with pytest.raises(TARGETS[name].refuses) as error:
        TARGETS[name].read(data, tmp_path)
    assert len(str(error.value)) < 2000
