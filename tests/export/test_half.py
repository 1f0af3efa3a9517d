"""A VAE computes in float16 on GPUs where its pictures are the same there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from triptych_demo import demo_build
from triptych_export import half, precision
from triptych_export.cuda import CudaGraphs
from triptych_serving.manifest import Manifest

MANIFEST = Manifest.load(demo_build("sdxl"))


def changed(folder, name, factor):
    """The demo build with one stage whose numbers are larger by `factor` from its first convolution to just behind it."""
    model = ir.load(MANIFEST.stage_path(name))
    conv = next(node for node in model.graph if node.op_type == "Conv")
    uses, out = list(conv.outputs[0].uses()), conv.outputs[0]
    for scale in (factor, 1 / factor):
        constant = ir.node("Constant", [], {"value": ir.tensor(np.float32(scale))})
        product = ir.node("Mul", [out, constant.outputs[0]])
        out = product.outputs[0]
        out.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.extend([constant, product])
    for node, index in uses:
        node.replace_input_with(index, out)
    model.graph.sort()
    (folder / name).mkdir()
    ir.save(model, folder / name / "model.onnx")
    return replace(MANIFEST, build=folder)


@pytest.mark.parametrize("name", half.STAGES)
def test_the_demos_vae_keeps_its_pictures(name):
    assert half.fits(MANIFEST, name)


@pytest.mark.parametrize(("factor", "fits"), [(4.0, True), (1e6, False)])
def test_numbers_that_are_too_large_inside_are_found_whatever_comes_out(tmp_path, monkeypatch, factor, fits):
    monkeypatch.setattr(Manifest, "verified", lambda self, path: self.build / path)
    assert half.fits(changed(tmp_path, "vae_decoder", factor), "vae_decoder") is fits


def test_the_choice_is_the_callers_then_what_fits_then_float32():
    assert precision.of_stage("vae_decoder", {}, {}) == "fp32"
    assert precision.of_stage("vae_decoder", {}, {"fits_half": True}) == "fp16"
    assert precision.of_stage("vae_decoder", {}, {"fits_half": False}) == "fp32"
    assert precision.of_stage("vae_decoder", {"vae_decoder": "fp32"}, {"fits_half": True}) == "fp32"


def test_a_models_second_graph_has_the_precision_of_the_first():
    assert precision.of_stage("unet_adapters", {}, {}) == "fp16"
    assert precision.of_stage("unet_adapters", {"unet": "fp32"}, {}) == "fp32"
    assert precision.of_stage("unet_adapters", {"unet": "fp32", "unet_adapters": "bf16"}, {}) == "bf16"
    assert precision.of_stage("unet_adapters", {"unet": "fp8"}, {}) == "fp16"  # which is for plain graphs alone
    assert precision.of_stage("text_encoder_adapters", {"unet": "fp32"}, {}) == "fp16"
    assert precision.of_stage("unet_image_prompts", {"unet": "bf16"}, {}) == "bf16"
    assert precision.of_stage("image_prompt_encoder", {"vae_encoder": "bf16"}, {}) == "fp16"  # no graph of the VAE


def test_a_graph_for_gpus_is_made_of_it(tmp_path):
    (tmp_path / "vae_decoder").mkdir()
    source = MANIFEST.stages["vae_decoder"]["path"]
    (tmp_path / source).write_bytes(MANIFEST.stage_path("vae_decoder").read_bytes())
    graphs = CudaGraphs(tmp_path, {})
    made = {}
    for fits in (True, False):
        facts = {**MANIFEST.stages["vae_decoder"], "fits_half": fits}
        made[graphs.made_from("vae_decoder", facts)] = graphs.make("vae_decoder", facts)[1]["precision"]
    assert [*made.values()] == ["fp16", "fp32"]
