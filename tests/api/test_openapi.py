"""The OpenAPI document says what the contract does, and nothing of its own."""

from __future__ import annotations

import pytest

from triptych_api.asked import FIELDS
from triptych_api.openapi import document, schema_of
from triptych_contract.families import FAMILIES


@pytest.fixture(scope="module")
def written():
    return document("1.2.3")


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/images/edits", "/v1/jobs"])
def test_every_parameter_of_every_family_is_there(written, path):
    body = written["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    declared = {name for family in FAMILIES.values() for name in family.parameters}
    own = {*FIELDS, "model", "images", "webhook"}
    assert declared <= body["properties"].keys() <= declared | own


def test_every_kind_of_the_contract_has_a_schema():
    for family in FAMILIES.values():
        for one in family.parameters.values():
            assert {"type", "description"} & schema_of(one.kind).keys(), one.name
