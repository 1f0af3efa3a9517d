"""What is made from the contract is as `python -m triptych_contract.generated` would make it now."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych_contract import generated
from triptych_contract.families import FAMILIES
from triptych_contract.settings import Settings, parameters

ROOT = Path(__file__).parents[2]
PROTOCOL = (ROOT / generated.PROTOCOL).read_text("utf-8")


@pytest.mark.parametrize("file", [generated.HINTS, generated.PROTOCOL], ids=str)
def test_the_file_is_fresh(file, tmp_path):
    for made in (generated.HINTS, generated.PROTOCOL):
        (tmp_path / made).parent.mkdir(parents=True)
    (tmp_path / generated.PROTOCOL).write_text(PROTOCOL, "utf-8")
    generated.main(tmp_path)
    assert (tmp_path / file).read_text("utf-8") == (ROOT / file).read_text("utf-8")


def test_every_parameter_has_one_row_in_the_documents_table():
    for members in [parameters(Settings), *map(generated.own, FAMILIES.values())]:
        assert generated.table(members.values()) in PROTOCOL
        assert [PROTOCOL.count(f"\n| `{name}` |") >= 1 for name in members] == [True] * len(members)


def test_what_stands_around_the_tables_stays():
    document = "before\n<!-- contract: shared -->\nold\n<!-- end -->\nafter\n"
    made = generated.tables(document)
    assert made.startswith("before\n<!-- contract: shared -->\n| input |")
    assert made.endswith("|\n<!-- end -->\nafter\n")
    assert generated.tables(made) == made


def test_a_link_in_the_words_is_plain_text_for_editors():
    assert "](" in PROTOCOL
    assert "](" not in generated.hints()
