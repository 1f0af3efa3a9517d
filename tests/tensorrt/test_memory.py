"""What builds hold on a GPU is known before it is loaded."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from triptych_demo import demo_builds
from triptych_export.attention import CHUNKS, in_chunks
from triptych_export.to_onnx import open_session
from triptych_serving.manifest import Manifest, ManifestError
from triptych_serving.tensorrt import machine, memory

from ..engines import RTX, planned
from ..simulated import MACHINE

GB = 10**9
# Held, and more for other sizes, by stage.
HELD = {"unet": (6, 2), "vae_decoder": (2, 5), "vae_encoder": (1, 4)}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """The demo SDXL as if its engines were of a size that matters."""

    def make(folder, key, facts):
        (folder / "engine.plan").write_bytes(b"an engine")
        own, more = HELD.get(key.stage, (0, 0))
        sizes = [own * GB] * (len(facts["profiles"]) - 1) + [(own + more) * GB]
        return {"seconds": 1.0, "peak_bytes": 1, "weights_bytes": GB, "activation_bytes": sizes}

    sdxl = next(build for build in demo_builds() if build.name == "sdxl")
    return Manifest.load(planned(sdxl, tmp_path_factory.mktemp("sized") / "build", ["sm89"], make))


def test_what_is_held_is_the_sum_of_weights_activations_and_processes(build):
    need = memory.need([build], "sm89")
    # Text encoders have one profile, of all of their rows.
    assert need.stages == {
        "text_encoder": GB,
        "text_encoder_2": GB,
        "unet": 7 * GB,
        "vae_decoder": 3 * GB,
        "vae_encoder": 2 * GB,
    }
    assert (need.processes, need.conditioning) == (5 * memory.CONTEXT_BYTES, 1 << 30)
    assert need.largest == 8 * GB  # the UNet's, which takes the most: one stage after the other runs at another size


def test_tritons_own_backend_holds_the_memory_of_every_size(build):
    need = memory.need([replace(build, target="tensorrt")], "sm89")
    assert need.stages["vae_decoder"] == (3 + 7) * GB
    assert need.largest == 8 * GB


def test_a_gpu_that_is_too_small_is_refused_with_the_sum_before_anything_is_loaded(build, monkeypatch):
    small = replace(MACHINE, memory_bytes=8 * GB)
    monkeypatch.setattr(machine, "probe", lambda _target: small)
    said = r"^GPU memory: 17\.6 GB \(.*unet 7\.0.*\); 25\.6 GB while .* asked for; Simulated GPU has 8\.0 GB\. Serve fewer models"
    with pytest.raises(ManifestError, match=said):
        machine.check_engines([build])
    monkeypatch.setattr(machine, "probe", lambda _target: replace(small, memory_bytes=18 * GB))
    machine.check_engines([build])


def test_a_manifest_without_figures_is_served(build, tmp_path):
    document = json.loads((build.build / "manifest.json").read_text())
    for stage in document["stages"].values():
        for engine in stage["engines"].values():
            del engine["activation_bytes"]
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    assert memory.need([Manifest.load(tmp_path)], "sm89").stages["unet"] == GB


def attention(path):
    """One head over any number of places, as a VAE has it."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, "places", 8]) for name in "qkvy"]
    transposed = helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2])
    nodes = [("MatMul", ["q", "kt"], "scores"), ("Softmax", ["scores"], "shares"), ("MatMul", ["shares", "v"], "y")]
    made = [transposed, *(helper.make_node(kind, given, [result]) for kind, given, result in nodes)]
    graph = helper.make_graph(made, "attention", tensors[:3], tensors[3:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def test_attention_in_chunks_gives_the_same_for_any_number_of_places(tmp_path):
    attention(tmp_path / "whole.onnx")
    model = ir.load(tmp_path / "whole.onnx")
    assert in_chunks(model.graph) == 1
    assert sum(node.op_type == "Softmax" for node in model.graph) == CHUNKS
    ir.save(model, tmp_path / "chunks.onnx")
    whole, chunks = (open_session(tmp_path / f"{name}.onnx") for name in ("whole", "chunks"))
    random = np.random.default_rng(0)
    for places in (*range(1, 40), 256):
        given = {name: random.standard_normal((2, 1, places, 8)).astype(np.float32) for name in "qkv"}
        np.testing.assert_allclose(chunks.run(None, given)[0], whole.run(None, given)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stage", ["vae_decoder", "vae_encoder"])
def test_exported_vaes_attend_in_chunks(tiny, stage):
    graph = ir.load(Manifest.load(tiny(0)[1]).stage_path(stage)).graph
    assert sum(node.op_type == "Softmax" for node in graph) == CHUNKS


def test_a_builder_tells_the_memory_of_each_profile(tmp_path):
    sdxl = next(build for build in demo_builds() if build.name == "sdxl")
    made = Manifest.load(planned(sdxl, tmp_path / "build", ["sm89"]))
    for facts in made.stages.values():
        engine = facts["engines"]["sm89"]
        assert len(engine["activation_bytes"]) == len(facts["profiles"])
        assert engine["weights_bytes"] > 0
    assert memory.need([made], "sm89").held < 5 * GB
    assert made.target == RTX
