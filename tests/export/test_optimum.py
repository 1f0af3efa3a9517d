"""Optimum, the real one: its folders as weights, and our builds under its pipelines."""

from __future__ import annotations

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from triptych_export import samplers
from triptych_export.build import ExportOptions, export
from triptych_export.errors import ExportError
from triptych_export.precision import lower
from triptych_export.sdxl.recipe import SdxlExport
from triptych_export.stages import StageSpec
from triptych_export.tensorrt.engines import Engines, EngineTarget
from triptych_export.tensorrt.store import EngineStore
from triptych_export.to_onnx import example_inputs, open_session
from triptych_server import Server
from triptych_serving.engines import engine_path, profiles
from triptych_serving.invariance import example
from triptych_serving.manifest import Manifest
from triptych_serving.ort import OrtDenoiser
from triptych_serving.tensorrt.denoiser import TensorRTDenoiser

from .. import plain, tiny_sdxl
from ..engines import simulated_build
from ..parity.test_sdxl import REFINED, Model, refined
from ..simulated import MACHINE, SimulatedDevice
from ..tiny_builds import SAMPLERS
from .optimum import environment
from .test_export import change_json

SEED = 2  # of the tiny model
PROMPT = "a 3d render of a red apple"
REQUESTS = [
    {"seed": 1, "num_inference_steps": 6, "guidance_scale": 5.0},
    {"seed": 2, "num_inference_steps": 9, "guidance_scale": 7.5, "negative_prompt": "grey", "clip_skip": 1},
    {"seed": 3, "num_inference_steps": 4, "guidance_scale": 1.0, "height": 64, "width": 96},
]


def as_published(folder):
    """A folder as those of the hub are, which Optimum's older transformers can read; ours saves for newer ones."""
    for part in (path.name for path in folder.glob("tokenizer*")):
        change_json(folder / "model_index.json", **{part: ["transformers", "PreTrainedTokenizerFast"]})
        change_json(folder / part / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    for file in (folder / "text_encoder").glob("*.safetensors"):
        tensors = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def ours(tiny):
    """Weights and our own export of them."""
    return tiny(SEED)


@pytest.fixture(scope="module")
def theirs(ours, tmp_path_factory):
    """Optimum's export of the same weights."""
    folder = tmp_path_factory.mktemp("optimum")
    environment.export(as_published(shutil.copytree(ours[0], folder / "weights")), folder / "onnx")
    return folder / "onnx"


@pytest.fixture(scope="module")
def build(ours, theirs, tmp_path_factory):
    """Our export of Optimum's."""
    return exported(theirs, tmp_path_factory.mktemp("build"), ExportOptions(samplers=["euler:default"]), ours[1])


def exported(weights, folder, options, other):
    """Our export, with the samplers of another export whose scheduler is the same: to find them takes long."""
    known = [
        (name, schedule) for name, card in Manifest.load(other).model.samplers.items() for schedule in card.schedules
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samplers, "legal_pairs", lambda _config: known)
        return export(weights, folder, options).build


@pytest.fixture(scope="module")
def pipeline(ours):
    return tiny_sdxl.load(ours[0])


def theirs_of(pipeline, settings, **more):
    given = {name: value for name, value in settings.items() if name != "seed"}
    generator = torch.Generator("cpu").manual_seed(settings["seed"])
    return np.asarray(pipeline(PROMPT, generator=generator, **given, **more).images[0]).astype(int)


def opened(file):
    return np.asarray(Image.open(file)).astype(int)


def test_what_is_served_from_optimums_folder_is_diffusers(build, pipeline):
    manifest = Manifest.load(build)
    assert manifest.one_timestep == {"unet"}
    assert manifest.stages["unet"]["inputs"]["timestep"]["shape"] == []
    assert all(stage["batch_invariant"] for stage in manifest.stages.values())
    wanted = [{**settings, "prompt": PROMPT} for settings in REQUESTS]
    with Server(build, http_port=0, grpc_port=0, metrics_port=0, cache_mb=0) as server:
        url = server.addresses.grpc
        assert plain.verb(url, "describe")["models"]["sdxl"]["one_timestep"] == ["unet"]
        assert plain.verb(url, "verify")["denoisers"]["unet"]["batch_invariant"]
        alone = [plain.grpc(url, **request)["image"] for request in wanted]
        # A batch of two timesteps would be an error: the graph takes one.
        with ThreadPoolExecutor(len(wanted) * 2) as pool:
            together = list(pool.map(lambda request: plain.grpc(url, **request)["image"], wanted * 2))
    assert together == alone * 2
    for settings, image in zip(REQUESTS, alone, strict=True):
        difference = np.abs(opened(io.BytesIO(image)) - theirs_of(pipeline, settings)).max()
        assert difference <= 1, f"{settings}: {difference}/255"
        assert opened(io.BytesIO(image)).std() > 1


def test_engines_are_built_of_optimums_graphs(build, tmp_path):
    manifest = Manifest.load(build)
    engines = Engines(EngineStore(tmp_path / "store"), EngineTarget("tensorrt-rtx", ("sm89",), {}), build)
    for name, stage in manifest.stages.items():
        wanted = engines.wanted(name, stage, manifest.model)
        engines.output = tmp_path
        files, facts = engines.make(wanted, lambda _phase, _share: None)
        assert (tmp_path / files[0]).stat().st_size > 10_000
        assert facts["precision"] == ("fp32" if name.startswith("vae") else "fp16")
        engines.output = build


def test_its_unet_runs_on_a_gpu_at_one_timestep_a_batch(build, tmp_path):
    manifest, device = Manifest.load(simulated_build(build, tmp_path / "build")), SimulatedDevice()
    inputs, sizes = manifest.stages["unet"]["inputs"], manifest.model.default_sizes
    made = profiles(manifest, "unet")
    engine = device.load(engine_path(manifest, "unet", MACHINE), range(len(made)))
    denoiser = TensorRTDenoiser(device, engine, made, inputs, sizes, most_rows=16)
    exact = OrtDenoiser(manifest.stage_path("unet"))
    for rows in (1, 5, 16):
        given = example(inputs, sizes, rows)
        np.testing.assert_array_equal(denoiser.predict(*given), exact.predict(*given))
    sample, timestep, conditioning = example(inputs, sizes, 2)
    with pytest.raises(ValueError, match="legal: one for all rows"):
        denoiser.predict(sample, timestep + np.float32([0, 1]), conditioning)


def test_a_refiner_of_optimums_refines_like_diffusers(ours, tmp_path):
    weights, own = ours
    facts = tiny_sdxl.make(tmp_path / "base", SEED)
    refiner = tmp_path / "refiner"
    tiny_sdxl.make_refiner(refiner, tmp_path / "base", facts, own_encoder=False, aesthetics=True)
    published = as_published(shutil.copytree(refiner, tmp_path / "published"))
    environment.export(published, tmp_path / "onnx", task="image-to-image")
    options = ExportOptions(samplers=SAMPLERS, refiner=tmp_path / "onnx")
    build = exported(weights, shutil.copytree(own, tmp_path / "build"), options, own)
    assert Manifest.load(build).one_timestep == {"refiner_unet"}
    with Server(build, http_port=0, grpc_port=0, metrics_port=0, cache_mb=0) as server:
        refined(Model(server.addresses.grpc, weights, SEED, refiner), REFINED)


def test_optimums_pipelines_draw_with_our_build(ours, pipeline, tmp_path):
    folder = as_published(shutil.copytree(ours[1], tmp_path / "build"))
    source = tmp_path / "source.png"
    Image.effect_noise((64, 64), 80).convert("RGB").save(source)
    image = {"seed": 4, "num_inference_steps": 8, "strength": 0.6}
    calls = [*REQUESTS, {**image, "image": str(source)}]
    (tmp_path / "calls.json").write_text(json.dumps([{**call, "prompt": PROMPT} for call in calls]))
    environment.draw(folder, tmp_path / "calls.json")
    for number, settings in enumerate(REQUESTS):
        difference = np.abs(opened(tmp_path / f"{number}.png") - theirs_of(pipeline, settings)).max()
        assert difference <= 1, f"{settings}: {difference}/255"
    from_picture = StableDiffusionXLImg2ImgPipeline(**pipeline.components, add_watermarker=False)
    expected = theirs_of(from_picture, image, image=Image.open(source))
    assert np.abs(opened(tmp_path / f"{len(REQUESTS)}.png") - expected).max() <= 1


def test_engines_do_without_what_is_for_optimums_pipelines(ours, tmp_path):
    manifest = Manifest.load(ours[1])
    for name, stage in manifest.stages.items():
        spec = StageSpec.of("", stage)
        example = example_inputs(spec, [{**manifest.model.smallest_sizes, "batch": 2}])[0]
        lower(manifest.stage_path(name), tmp_path / f"{name}.onnx", "fp32", spec)
        whole, lowered = (open_session(path) for path in (manifest.stage_path(name), tmp_path / f"{name}.onnx"))
        assert [value.name for value in lowered.get_inputs()] == list(spec.inputs)
        assert {value.name for value in lowered.get_outputs()} == set(spec.outputs)
        assert not lowered.get_overridable_initializers()
        for one, other in zip(*(session.run(list(spec.outputs), example) for session in (whole, lowered)), strict=True):
            limit = 1 if one.dtype == np.uint8 else 1e-5  # without ONNX Runtime's optimisations
            assert np.abs(one.astype(float) - other).max() <= limit


def another_name(folder):
    file = folder / "unet/model.onnx"
    model = onnx.load(file)
    model.graph.input[1].name = "t"
    onnx.save(model, file)


def without_hidden_states(folder):
    file = folder / "text_encoder/model.onnx"
    model = onnx.load(file)
    del model.graph.output[2]
    onnx.save(model, file)


def half(folder):
    file = folder / "vae_encoder/model.onnx"
    model = onnx.load(file)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, file)


def no_decoder(folder):
    (folder / "vae_decoder/model.onnx").unlink()


def weights_elsewhere(folder):
    (folder.parent / "data").write_bytes(b"secret")
    (folder / "unet/model.onnx_data").symlink_to(folder.parent / "data")


def our_own(folder):
    (folder / "manifest.json").write_text("{}")


def write_stages(folder, path):
    for stage in SdxlExport.open(folder, ExportOptions()).stages(77).values():
        stage.write(path, [])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (another_name, r"unet/model.onnx: inputs sample, t, .*; supported: sample, timestep, "),
        (without_hidden_states, r"text_encoder/model.onnx: outputs .*; hidden_states.0 missing"),
        (half, r"vae_encoder/model.onnx: sample is float16; supported: float32"),
        (no_decoder, "vae_decoder: no model.onnx in "),
        (weights_elsewhere, "model.onnx_data: leads outside "),
        (our_own, "is a build; supported: the folder that it was exported from"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_by_name(theirs, tmp_path, spoil, message):
    folder = shutil.copytree(theirs, tmp_path / "onnx")
    spoil(folder)
    with pytest.raises(ExportError, match=message):
        write_stages(folder, tmp_path / "model.onnx")
