"""Whatever strangers write, reading it ends with a value or the reader's own error; `python -m tests.fuzz` tries for longer."""

from __future__ import annotations

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
def test_what_the_readers_are_shown_is_read(name, tmp_path):
    for example in TARGETS[name].examples:
        TARGETS[name].read(example, tmp_path)
