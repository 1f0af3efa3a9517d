"""The export: what it refuses, what it checks, what it keeps."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import onnx
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from triptych_contract.sdxl import FAMILY
from triptych_export import to_onnx
from triptych_export.build import ExportOptions, export
from triptych_export.errors import ExportError
from triptych_export.sdxl import recipe as sdxl
from triptych_export.sdxl.stages import ClipStage
from triptych_export.stages import StageSpec, TensorSpec
from triptych_export.weights import Weights
from triptych_server import CannotServe, Server
from triptych_serving.adapters.mix import Mix, Worn
from triptych_serving.denoiser import Conditioning
from triptych_serving.manifest import Manifest, ManifestError
from triptych_serving.ort import OrtDenoiser

from .. import ip_adapters
from ..tiny_builds import ADAPTERS, INPAINTING, PROMPTED, REFINERS, SAMPLERS, refiner_of

PLAIN = 2  # a tiny model without a refiner


@pytest.fixture
def weights(tiny, tmp_path):
    return shutil.copytree(tiny(PLAIN)[0], tmp_path / "weights")


@pytest.fixture
def build(tiny, tmp_path):
    return shutil.copytree(tiny(PLAIN)[1], tmp_path / "build")


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def no_index(folder):
    (folder / "model_index.json").unlink()


def another_pipeline(folder):
    change_json(folder / "model_index.json", _class_name="FluxPipeline")


def only_a_pickle(folder):
    for file in (folder / "vae").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))


def no_encoder(folder):
    shutil.rmtree(folder / "text_encoder")


def odd_channels(folder):
    config = {**UNet2DConditionModel.load_config(folder / "unet"), "in_channels": 8}
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")


def odd_scheduler(folder):
    change_json(folder / "model_index.json", scheduler=["diffusers", "DPMSolverSDEScheduler"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_index, "has no model_index.json"),
        (another_pipeline, "_class_name 'FluxPipeline'; supported: StableDiffusionXLPipeline"),
        (only_a_pickle, "vae: no .safetensors file in .*; pickles are not read"),
        (no_encoder, "text_encoder: missing from"),
        (odd_channels, "unet/config.json: in_channels 8; supported: as many as out_channels, 4, or 9"),
        (odd_scheduler, "scheduler: DPMSolverSDEScheduler; supported: "),
    ],
)
def test_a_folder_that_is_not_supported_is_refused_by_name(weights, tmp_path, spoil, message):
    spoil(weights)
    with pytest.raises(ExportError, match=message):
        export(weights, tmp_path / "out")


@pytest.fixture
def refined(tiny, tmp_path):
    """Copies of a base and its refiner."""
    base = tiny(min(REFINERS))[0]
    return shutil.copytree(base, tmp_path / "base"), shutil.copytree(refiner_of(base), tmp_path / "refiner")


def another_prediction(refiner):
    change_json(refiner / "scheduler/scheduler_config.json", prediction_type="sample")


def other_prompts(refiner):
    file = refiner / "tokenizer_2/tokenizer.json"
    file.write_text(file.read_text().replace('"Lowercase"', '"NFD"'))


def a_base(refiner):
    change_json(refiner / "model_index.json", _class_name="StableDiffusionXLPipeline")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (another_prediction, "refiner scheduler: prediction_type 'sample'; supported: the base's, 'epsilon'"),
        (other_prompts, "refiner tokenizer_2: differs from the base's"),
        (a_base, "_class_name 'StableDiffusionXLPipeline'; supported: StableDiffusionXLImg2ImgPipeline"),
    ],
)
def test_a_refiner_that_does_not_fit_its_base_is_refused_by_name(refined, tmp_path, spoil, message):
    base, refiner = refined
    spoil(refiner)
    with pytest.raises(ExportError, match=message):
        export(base, tmp_path / "out", ExportOptions(refiner=refiner))


def test_a_refiner_that_cannot_take_the_bases_own_size_is_refused_by_name(refined, tmp_path):
    base, refiner = refined
    sample_size = json.loads((base / "unet/config.json").read_text())["sample_size"]
    change_json(base / "unet/config.json", sample_size=sample_size + 1)
    with pytest.raises(ExportError, match=r"refiner unet: takes multiples of \d+ pixels; supported: those that divide"):
        export(base, tmp_path / "out", ExportOptions(refiner=refiner))


def test_only_a_text_encoder_of_its_own_is_exported_with_a_refiner(tiny):
    for seed, (own_encoder, _) in REFINERS.items():
        build = tiny(seed)[1]
        assert ("refiner_text_encoder_2" in Manifest.load(build).stages) == own_encoder
        ensemble = (build / "model_repository/sdxl/config.pbtxt").read_text()
        assert ("refiner_text_encoder_2" in ensemble) == own_encoder
        assert "only with" not in ensemble


class Differing(ClipStage):
    """Traced, it is another function than it was in PyTorch."""

    def forward(self, input_ids, clip_skip):
        *others, hidden_states = super().forward(input_ids, clip_skip)
        return *others, hidden_states + (0.01 if torch.compiler.is_exporting() else 0)


def test_a_stage_that_differs_stops_the_export_with_the_figure(weights, tmp_path, monkeypatch):
    monkeypatch.setitem(sdxl.MODULES, "text_encoder", Differing)
    with pytest.raises(ExportError, match=r"text_encoder: hidden_states differs from PyTorch by \d.\d\de-0\d; legal"):
        export(weights, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.onnx*"))
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_second_run_makes_only_what_changed(tiny, build):
    weights = tiny(PLAIN)[0]
    times = {path: path.stat().st_mtime_ns for path in build.rglob("*.onnx")}
    (build / "samplers/euler-default.npz.xz").write_bytes(b"harmed")
    said = []
    export(weights, build, ExportOptions(samplers=SAMPLERS), lambda what, _share: said.append(what))
    assert {path: path.stat().st_mtime_ns for path in build.rglob("*.onnx")} == times
    Manifest.load(build).verify()
    assert said[-1] == "done"


def test_the_manifest_tells_the_model(tiny):
    weights, build = tiny(1)
    manifest, folder = Manifest.load(build), Weights.open(weights, sdxl.BASE)
    assert manifest.model.prediction_type == folder.config("scheduler")["prediction_type"] == "v_prediction"
    assert manifest.model.force_zeros_for_empty_prompt is True
    assert manifest.model.refiner is None
    assert manifest.model.default_height == folder.config("unet")["sample_size"] * manifest.model.vae_scale_factor
    assert all(stage["batch_invariant"] for stage in manifest.stages.values())
    assert all(stage["max_difference"] <= 1.0 for stage in manifest.stages.values())
    assert set(manifest.artifacts) >= {stage["path"] for stage in manifest.stages.values()}


def test_a_unet_of_nine_channels_reads_a_mask_and_what_is_outside_it_beside_the_latents(tiny):
    weights, build = tiny(INPAINTING)
    manifest = Manifest.load(build)
    assert json.loads((weights / "model_index.json").read_text())["_class_name"] == sdxl.INPAINTING.pipeline
    assert manifest.model.inpainting
    assert not Manifest.load(tiny(PLAIN)[1]).model.inpainting
    for stage in ("unet", "unet_adapters"):
        inputs = manifest.stages[stage]["inputs"]
        assert [inputs[name]["shape"][1] for name in ("sample", "masked_picture")] == [4, 5]
    assert "masked_picture" not in manifest.stages["refiner_unet"]["inputs"]
    assert not (build / "model_index.json").exists()  # Optimum's pipelines would give its UNet nine channels


@pytest.fixture(scope="module")
def pictured(tiny, tmp_path_factory):
    """A base, files of adapters for it and beside it, and the options of an export with them."""
    weights, folder = tiny(PROMPTED)[0], tmp_path_factory.mktemp("ip-adapters")
    own = ip_adapters.folder_of(weights)
    state = load_file(own / "plain.safetensors")
    cuts = {
        "pickled": {},
        "faceid": {name: one for name, one in state.items() if "proj" not in name}
        | {"image_proj.norm.weight": torch.ones(3)},
        "short": {name: one for name, one in state.items() if not name.startswith("ip_adapter.1.")},
        "narrow": {**state, "image_proj.proj.weight": torch.ones(len(state["image_proj.proj.bias"]), 7)},
        "more": {**state, "lora.weight": torch.ones(2, 2)},
    }
    for name, tensors in cuts.items():
        save_file({key: one.contiguous() for key, one in tensors.items()}, folder / f"{name}.safetensors")
    (folder / "pickled.safetensors").rename(folder / "pickled.bin")
    (folder / "cut.safetensors").write_bytes((own / "plain.safetensors").read_bytes()[:1000])
    (folder / "plain.safetensors").symlink_to(own / "plain.safetensors")
    return weights, folder, own / "image_encoder"


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (["a=pickled.bin"], {}, r"--ip-adapter: 'a=.*pickled.bin' given; legal: NAME=FILE, a .safetensors file"),
        (["../a=plain.safetensors"], {}, r"--ip-adapter: '../a=.*' given; legal: NAME=FILE"),
        (["a=none.safetensors"], {}, "--ip-adapter: .* given; legal: NAME=FILE"),
        (
            ["a=faceid.safetensors"],
            {},
            "faceid.safetensors: image_proj of another kind; supported: IP-Adapters of SDXL",
        ),
        (["a=short.safetensors"], {}, r"short.safetensors: 2 weights that this UNet does not have, or has not"),
        (
            ["a=more.safetensors"],
            {},
            r"more.safetensors: 1 weights that this UNet does not have, or has not \(lora.weight\)",
        ),
        (["a=narrow.safetensors"], {}, "image_proj.proj reads 7 channels; supported: the image encoder's, 40"),
        (["a=cut.safetensors"], {}, "cut.safetensors: .*; supported: IP-Adapters of SDXL"),
        (["a=plain.safetensors"] * 2, {}, "--ip-adapter: a, a given; legal: each name once"),
        (["a=plain.safetensors"], {"image_encoder": None}, "--image-encoder: missing; --ip-adapter also needs it"),
        ([], {}, "--ip-adapter: missing; --image-encoder also needs it"),
        (["a=plain.safetensors"], {"adapters": 4}, "--ip-adapter: with --adapters given; legal: one of them"),
    ],
)
def test_image_prompts_that_do_not_fit_are_refused_by_name(pictured, given, options, message):
    weights, folder, encoder = pictured
    files = [one.replace("=", f"={folder}/") for one in given]
    with pytest.raises(ExportError, match=message):
        sdxl.SdxlExport.open(weights, ExportOptions(**{"ip_adapter": files, "image_encoder": encoder, **options}))


def test_a_folder_that_is_no_image_encoder_is_refused(pictured, tmp_path):
    weights, folder, _ = pictured
    given = [f"a={folder}/plain.safetensors"]
    for encoder, message in ((tmp_path, "config.json"), (weights / "text_encoder", "text_encoder")):
        with pytest.raises(ExportError, match=message):
            sdxl.SdxlExport.open(weights, ExportOptions(ip_adapter=given, image_encoder=encoder))


def test_image_prompts_leave_the_plain_stages_as_they_are(pictured):
    weights, folder, encoder = pictured
    given = {"ip_adapter": [f"a={folder}/plain.safetensors"], "image_encoder": encoder}
    plain, both = (sdxl.SdxlExport.open(weights, ExportOptions(**options)).stages(77) for options in ({}, given))
    assert both.keys() - plain.keys() == set(FAMILY.prompted.values())
    assert {name: both[name] for name in plain} == plain


def test_no_path_of_this_machine_is_in_a_graph(tiny):
    for path in tiny(0)[1].rglob("*.onnx"):
        assert b"/site-packages/" not in path.read_bytes()


@pytest.mark.parametrize(("dtype", "stored"), [(torch.half, "FLOAT16"), (torch.bfloat16, "BFLOAT16")])
def test_weights_are_stored_in_half_where_that_is_exact(tmp_path, dtype, stored):
    module = torch.nn.Linear(64, 64)
    module.weight.data = (1e-3 * module.weight.data).to(dtype).float()
    module.bias.data = torch.linspace(0, 1, 64)
    spec = StageSpec(
        "x", {"input": TensorSpec("float32", ("batch", 64))}, {"out": TensorSpec("float32", ("batch", 64))}
    )
    example = [{"input": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)}]
    to_onnx.convert(module, spec, example, tmp_path / "model.onnx")
    types = {t.data_type for t in onnx.load(tmp_path / "model.onnx").graph.initializer if np.prod(t.dims) == 64 * 64}
    assert types == {onnx.TensorProto.DataType.Value(stored)}
    expected = to_onnx.references(module, spec, example)
    assert to_onnx.check_graph("x", tmp_path / "model.onnx", example, expected) <= 1e-6


@pytest.mark.parametrize(
    ("files", "variant", "chosen"),
    [
        (["model.safetensors"], None, ["model.safetensors"]),
        (["model.bf16.safetensors"], "bf16", ["model.bf16.safetensors"]),
        (["model.fp16.safetensors", "model.safetensors"], None, ["model.safetensors"]),
        (["model.bf16.safetensors", "model.fp16.safetensors"], "bf16", ["model.bf16.safetensors"]),
        (["m.bf16-00001-of-00002.safetensors"], "bf16", ["m.bf16-00001-of-00002.safetensors"]),
        (["m-00001-of-00002.fp16.safetensors"], "fp16", ["m-00001-of-00002.fp16.safetensors"]),
    ],
)
def test_half_precision_files_are_read_where_there_are_no_others(tmp_path, files, variant, chosen):
    (tmp_path / "unet").mkdir()
    for file in files:
        (tmp_path / "unet" / file).touch()
    weights = Weights(tmp_path, {}, sdxl.BASE)
    assert weights.variant("unet") == variant
    assert [file.name for file in weights.files("unet")] == chosen


def missing(build):
    (build / "unet/model.onnx").unlink()


def truncated(build):
    file = build / "unet/model.onnx"
    file.write_bytes(file.read_bytes()[:-1])


def foreign(build):
    file = build / "unet/model.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def leading_outside(build):
    file = build / "unet/model.onnx"
    shutil.move(file, build.parent / "elsewhere.onnx")
    file.symlink_to(build.parent / "elsewhere.onnx")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (missing, "unet/model.onnx: missing from"),
        (truncated, r"unet/model.onnx: \d+ bytes, \d+ expected"),
        (foreign, "unet/model.onnx: SHA-256 differs"),
        (leading_outside, "unet/model.onnx: leads outside"),
    ],
)
def test_a_harmed_build_is_not_started_and_the_file_is_named(build, harm, message):
    harm(build)
    began = time.monotonic()
    with pytest.raises(CannotServe, match=message), Server(build, http_port=0, grpc_port=0, metrics_port=0):
        pass
    assert time.monotonic() - began < 5


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(ManifestError, match=r"manifest.json: missing; is this a folder that `triptych export` made\?"):
        Manifest.load(tmp_path)


def test_graphs_for_adapters_lie_beside_the_plain_ones(tiny):
    weights = tiny(min(ADAPTERS))[0]
    plain, both = (sdxl.SdxlExport.open(weights, ExportOptions(adapters=rank)).stages(77) for rank in (None, 4))
    assert both.keys() - plain.keys() == set(FAMILY.adapted.values())
    assert {name: both[name] for name in plain} == plain
    for stage, adapted in FAMILY.adapted.items():
        inputs, layers = both[adapted].spec.inputs, both[adapted].spec.layers
        assert {name: inputs[name] for name in plain[stage].spec.inputs} == plain[stage].spec.inputs
        assert inputs["lora_a"].shape == ("batch", sum(size for size, _ in layers.values()), 4)
        assert inputs["lora_b"].shape == ("batch", 4, sum(size for _, size in layers.values()))


def test_the_manifest_has_the_layers_that_adapters_change(tiny):
    stages = Manifest.load(tiny(min(ADAPTERS))[1]).stages
    unet, encoder = (stages[FAMILY.adapted[stage]]["layers"] for stage in ("unet", "text_encoder_2"))
    kinds = {name.split("transformer_blocks.0.")[-1] for name in unet if "down_blocks.1.attentions.0." in name}
    attention = {f"attn{k}.{part}" for k in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")}
    ends = {f"down_blocks.1.attentions.0.{end}" for end in ("proj_in", "proj_out")}
    assert kinds == {*attention, *ends, "ff.net.0.proj", "ff.net.2"}
    of_layer = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"}
    assert {name.removeprefix("encoder.layers.0.") for name in encoder if ".0." in name} == of_layer


def test_layers_apart_give_the_bytes_that_slabs_do(tiny):
    manifest, random = Manifest.load(tiny(min(ADAPTERS))[1]), np.random.default_rng(0)
    stage = manifest.stages["unet_adapters"]
    slabs = manifest.stage_path("unet_adapters")
    graphs = OrtDenoiser(slabs), OrtDenoiser(manifest.verified(stage["apart"]), shares=(None, slabs))
    assert (slabs.parent / "apart.onnx").stat().st_size < slabs.stat().st_size / 4  # the weights are there once

    def some(name, rows=2):
        shape = [
            {"tokens": 77, "latent_height": 8, "latent_width": 8}.get(k, k) for k in stage["inputs"][name]["shape"]
        ]
        return random.standard_normal((rows, *shape[1:]), np.float32)

    def asked():
        a, b = some("lora_a", 1)[0][:, :3], some("lora_b", 1)[0][:3]
        arrays = {name: some(name) for name in ("encoder_hidden_states", "text_embeds", "time_ids")}
        return Conditioning(arrays, Mix((Worn(a, b, 0.5),), stage["inputs"]["lora_a"]["shape"][2]))

    users = [asked() for _ in range(4)]
    for some_users in ([0, 1, 2, 3], [2, 1], [3], [1, 3, 0]):  # who lies where changes
        rows = 2 * len(some_users)
        given = some("sample", rows), np.full(rows, 7.0, np.float32), [users[k] for k in some_users]
        slabs_made, apart_made = (graph.predict(*given) for graph in graphs)
        np.testing.assert_array_equal(apart_made, slabs_made)


def test_adapters_are_not_for_tritons_own_backend(tiny):
    with pytest.raises(
        ExportError, match="--adapters: 8 with target tensorrt given; legal: targets cpu, cuda and tensorrt-rtx"
    ):
        sdxl.SdxlExport.open(tiny(min(ADAPTERS))[0], ExportOptions(target="tensorrt", adapters=8))
