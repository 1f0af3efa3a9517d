"""`--target cuda`: graphs in their precision beside those that were checked, run here by the CPU provider."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from triptych_demo import demo_build
from triptych_export import half
from triptych_export.build import ExportOptions, export
from triptych_export.cuda import CudaGraphs
from triptych_export.errors import ExportError
from triptych_export.stages import StageSpec
from triptych_export.to_onnx import example_inputs
from triptych_serving.manifest import Manifest
from triptych_serving.ort import OrtStage

from ..tiny_builds import SAMPLERS

SEED = 1
BFLOAT16, FLOAT = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
# How far a stage of the demo models may be from its graph in float32, relative to its largest number; pixels: levels.
ALLOWED = {"fp16": 2e-3, "fp32": 2e-5}
LATENTS = {"latent_height": 16, "latent_width": 24, "height": 128, "width": 192}


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """A build for the processor, exported once more for CUDA: what was checked is kept."""
    weights, build = tiny(SEED)
    output = shutil.copytree(build, tmp_path_factory.mktemp("cuda") / "build")
    told: list[str] = []
    options = ExportOptions(target="cuda", samplers=SAMPLERS, precisions={"text_encoder": "fp32"})
    export(weights, output, options, lambda what, _share: told.append(what))
    return Manifest.load(build), Manifest.load(output), output


def test_every_stage_has_a_graph_in_its_precision_that_the_manifest_and_the_artifacts_name(exported):
    before, manifest, output = exported
    assert manifest.target == "cuda"
    manifest.verify()
    precisions = {name: facts["precision"] for name, facts in manifest.stages.items()}
    tried = {name: {True: "fp16", False: "fp32"}[manifest.stages[name]["fits_half"]] for name in half.STAGES}
    assert precisions == {"text_encoder": "fp32", "text_encoder_2": "fp16", "unet": "fp16", **tried}
    for name, facts in manifest.stages.items():
        assert manifest.stage_path(name) == output / name / "cuda.onnx"
        assert facts["sha256"] != before.stages[name]["sha256"]
        weights = [value.dtype for value in ir.load(output / facts["path"]).graph.initializers.values()]
        halves = {"fp16": ir.DataType.FLOAT16}.get(facts["precision"])
        assert halves is None or Counter(weights)[halves] > Counter(weights)[ir.DataType.FLOAT]


def test_a_second_export_makes_nothing_again(tiny, exported):
    _, manifest, output = exported
    before = {path: (output / path).stat().st_mtime_ns for path in manifest.artifacts}
    options = ExportOptions(target="cuda", samplers=SAMPLERS, precisions={"text_encoder": "fp32"})
    export(tiny(SEED)[0], output, options)
    assert before == {path: (output / path).stat().st_mtime_ns for path in Manifest.load(output).artifacts}


@pytest.mark.parametrize(
    ("precisions", "words"),
    [
        ({"unet": "fp8"}, r"precision of unet: 'fp8' given; legal with --target cuda: fp32, fp16, bf16"),
        ({"unet": "int4"}, r"precision of unet: 'int4' given; legal: fp32, fp16"),
    ],
)
def test_other_precisions_are_refused_before_anything_is_made(tiny, tmp_path, precisions, words):
    with pytest.raises(ExportError, match=words):
        export(tiny(SEED)[0], tmp_path / "build", ExportOptions(target="cuda", precisions=precisions))
    assert not (tmp_path / "build").exists()


def demo_stages():
    """All in float16, which is the harder, and in float32 those whose attention is rewritten."""
    for family in ("sdxl", "stable_cascade"):
        manifest = Manifest.load(demo_build(family))
        yield from ((family, name, "fp16") for name in manifest.stages)
        yield from ((family, name, "fp32") for name in manifest.model.denoisers if name in manifest.stages)


@pytest.mark.parametrize(("family", "name", "precision"), [*demo_stages()])
def test_the_demo_models_graphs_give_the_same_numbers(tmp_path, family, name, precision):
    manifest = Manifest.load(demo_build(family))
    facts, checked = manifest.stages[name], manifest.stage_path(name)
    (tmp_path / name).mkdir()
    shutil.copy(checked, tmp_path / name)
    files, made = CudaGraphs(tmp_path, {name: precision}).make(name, facts)
    attentions = sum(node.op_type == "MultiHeadAttention" for node in ir.load(tmp_path / made["path"]).graph)
    # Those of text encoders have a mask, those of VAEs run in chunks.
    assert attentions == {"unet": 14, "prior": 6, "decoder": 5}.get(name, 0)
    spec = StageSpec.of(name, facts)
    (given,) = example_inputs(spec, [{**dict.fromkeys(names(spec), 24), **LATENTS, "batch": 2}])
    reference, got = OrtStage(checked, spec.outputs)(given), OrtStage(tmp_path / files[0], spec.outputs)(given)
    for output, wanted in reference.items():
        difference = np.abs(wanted.astype(float) - got[output].astype(float)).max()
        if wanted.dtype == np.uint8:
            assert difference <= 1
        else:
            assert difference <= ALLOWED[precision] * np.abs(wanted).max()


def names(spec):
    return {dim for tensor in spec.inputs.values() for dim in tensor.shape if isinstance(dim, str)}


@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_in_bfloat16_operations_that_the_provider_has_not_stay_in_float32(tmp_path, name):
    manifest = Manifest.load(demo_build("stable_cascade"))
    (tmp_path / name).mkdir()
    shutil.copy(manifest.stage_path(name), tmp_path / name)
    _, made = CudaGraphs(tmp_path, {}).make(name, manifest.stages[name])
    assert made["precision"] == "bf16"
    onnx.checker.check_model(str(tmp_path / made["path"]))
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / made["path"])).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    taken = {
        (node.op_type, types[node.input[0]]) for node in graph.node if node.op_type in ("Conv", "Pad", "DepthToSpace")
    }
    assert taken == {("Conv", BFLOAT16), ("Pad", FLOAT), ("DepthToSpace", FLOAT)}
