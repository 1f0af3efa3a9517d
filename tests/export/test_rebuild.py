"""The demo's pipeline as it is rebuilt for the benchmark: its weights out of the graphs of its build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from triptych_demo import demo_build
from triptych_export.options import ExportOptions
from triptych_export.peers.rebuild import rebuild
from triptych_export.sdxl.recipe import SdxlExport
from triptych_serving.manifest import Manifest
from triptych_serving.ort import OrtStage

from .rebuilt import examples, of_torch

EDGES = Path(__file__).parents[2] / "demo/controlnet_edges"


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """The demo's pipeline; what its build does not hold is the layer behind the states that SDXL reads."""
    folder = tmp_path_factory.mktemp("rebuilt")
    missing = rebuild(demo_build(), folder)
    assert missing
    assert all(
        name.startswith(("text_encoder.encoder.layers.2.", "text_encoder.final_layer_norm.")) for name in missing
    )
    return folder


@pytest.mark.parametrize(
    ("stage", "most"), [("unet", 1e-4), ("vae_decoder", 1.0), ("text_encoder_2", 1e-4), ("text_encoder", 1e-4)]
)
def test_the_demos_weights_come_out_of_its_graphs(rebuilt, stage, most):
    """Every output of PyTorch's module with them is that of the graph they were taken from; pixels are whole numbers."""
    manifest = Manifest.load(demo_build())
    inputs = examples(manifest.stages[stage]["inputs"])
    theirs = OrtStage(manifest.stage_path(stage))(inputs)
    ours = of_torch(rebuilt, stage, inputs)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name].astype(np.float32), rtol=1e-4, atol=most, err_msg=name)


def test_the_demos_control_fits_them_and_was_trained(rebuilt):
    (control,) = SdxlExport.open(rebuilt, ExportOptions(control=[f"edges={EDGES}"])).controls
    assert control.load("controlnet").controlnet_mid_block.weight.abs().max() > 0.01  # zeros before a training
