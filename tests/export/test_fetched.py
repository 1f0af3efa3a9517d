"""What `triptych fetch` brings is what the exporter reads."""

from __future__ import annotations

import pytest

from triptych_export.fetching import MODELS
from triptych_export.sdxl.recipe import BASE, REFINER
from triptych_export.stable_cascade.recipe import DECODER
from triptych_export.stable_cascade.recipe import PRIOR as CASCADE_PRIOR
from triptych_export.weights import Weights

from ..fetching.hub import UNET, bring, serving, small_hub


@pytest.fixture
def hub():
    yield from serving(small_hub())


def test_the_exporter_reads_what_was_fetched(hub, tmp_path):
    folder = bring(hub, tmp_path).folder
    weights = Weights(folder, {}, BASE)
    assert {weights.variant(component) for component in BASE.components} == {"fp16"}
    assert [str(path.relative_to(folder)) for path in weights.files("unet")] == [UNET]


def test_the_tables_parts_are_the_exporters():
    kinds = {"sdxl": BASE, "sdxl-refiner": REFINER, "stable-cascade": DECODER, "stable-cascade-prior": CASCADE_PRIOR}
    for name, kind in kinds.items():
        assert set(MODELS[name].components) == set(kind.components)
        assert set(MODELS[name].configs) == {*kind.tokenizers, "scheduler"}
