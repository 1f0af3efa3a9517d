"""The export of Stable Cascade: its stages at every kind of size, its tables, what it refuses, what it keeps."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from diffusers import StableCascadeUNet

from triptych_export.build import ExportOptions, export
from triptych_export.errors import ExportError
from triptych_export.samplers import CHECKED
from triptych_export.stable_cascade import wuerstchen
from triptych_export.tracing import TOLERANCE, run_table, tapped
from triptych_serving.manifest import Manifest
from triptych_serving.ort import OrtStage
from triptych_serving.tables import SamplerTables, load_tables

from .. import tiny_cascade as tiny_cascades
from ..tiny_builds import CASCADES
from ..tiny_cascade import decoder_of

LARGEST_DIFFERENCE = 1e-4
PLAIN, OWN_ENCODER, BF16 = 0, 1, 2


@pytest.fixture
def folders(tmp_path):
    """A prior and its decoder, not exported."""
    tiny_cascades.make(tmp_path / "prior", PLAIN)
    return tmp_path / "prior"


def size(folder_seed):
    return tiny_cascades.choose(folder_seed)["size"]


def random_inputs(stage, sizes):
    random = np.random.default_rng(0)
    inputs = {}
    for name, spec in stage["inputs"].items():
        shape = [sizes.get(dim, dim) for dim in spec["shape"]]
        values = random.random(shape) if name == "timestep_ratio" else random.standard_normal(shape)
        inputs[name] = values.astype(np.float32)
    return inputs


def relative(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("seed", CASCADES)
def test_stages_are_diffusers_unets_at_every_kind_of_size(tiny_cascade, seed):
    weights, build = tiny_cascade(seed)
    manifest, pipelines = Manifest.load(build), tiny_cascades.load(weights)
    a, b, c, *_ = manifest.model.legal_sizes
    for name, unet in (("prior", pipelines[0].prior), ("decoder", pipelines[1].decoder)):
        served = OrtStage(build / manifest.stages[name]["path"])
        for height, width in ((a, a), (a, b), (b, a), (c, b), (manifest.model.max_size, a)):
            inputs = random_inputs(manifest.stages[name], {**manifest.model.sizes(height, width), "batch": 2})
            with torch.inference_mode():
                wanted = unet(**{name: torch.from_numpy(value) for name, value in inputs.items()}).sample.numpy()
            assert relative(served(inputs)["out_sample"], wanted) <= LARGEST_DIFFERENCE, (name, height, width)


@pytest.mark.parametrize("seed", CASCADES)
def test_text_encoders_see_no_padding(tiny_cascade, seed):
    weights, build = tiny_cascade(seed)
    stages = Manifest.load(build).stages
    assert ("cascade_decoder_text_encoder" in stages) == tiny_cascades.choose(seed)["own_text_encoder"]
    for name, pipeline in zip(
        ("cascade_text_encoder", "cascade_decoder_text_encoder"), tiny_cascades.load(weights), strict=True
    ):
        if name not in stages:
            continue
        tokens = pipeline.tokenizer(["a fox", ""], padding="max_length", truncation=True, return_tensors="pt")
        served = OrtStage(build / stages[name]["path"])(
            {"input_ids": tokens.input_ids.numpy(), "attention_mask": tokens.attention_mask.numpy()}
        )
        with torch.inference_mode():
            wanted = pipeline.text_encoder(**tokens, output_hidden_states=True)
        assert relative(served["text_embeds"], wanted.text_embeds.numpy()) <= LARGEST_DIFFERENCE
        if "hidden_states" in served:
            assert relative(served["hidden_states"], wanted.hidden_states[-1].numpy()) <= LARGEST_DIFFERENCE


def test_the_manifest_tells_the_model(tiny_cascade):
    manifest = Manifest.load(tiny_cascade(OWN_ENCODER)[1])
    model, facts = manifest.model, tiny_cascades.choose(OWN_ENCODER)
    assert manifest.family == "stable_cascade"
    assert (model.default_prior_num_inference_steps, model.default_num_inference_steps) == (20, 10)
    assert (model.default_prior_guidance_scale, model.default_decoder_guidance_scale) == (4.0, 0.0)
    assert model.default_height == facts["size"] in model.legal_sizes
    assert model.min_size in model.legal_sizes
    assert facts["size"] / 4 <= model.min_size <= model.max_size <= 2 * facts["size"]
    assert model.own_text_encoder
    assert model.tokenizers[0].max_length == facts["tokens"]
    assert all(stage["batch_invariant"] for stage in manifest.stages.values())


@pytest.mark.parametrize("seed", CASCADES)
def test_previews_have_the_stages_shapes(tiny_cascade, seed):
    model = Manifest.load(tiny_cascade(seed)[1]).model
    for stage, (channels, patch) in {"prior": (model.prior_channels, 4), "decoder": (4, 1)}.items():
        preview = model.previews[stage]
        assert preview.patch == patch
        assert np.shape(preview.weights) == (channels, 3 * patch**2)
        assert np.shape(preview.bias) == (3 * patch**2,)
        assert np.isfinite(preview.weights).all()


def test_weights_in_bfloat16_stay_so(tiny_cascade):
    for stage in ("prior", "decoder", "cascade_text_encoder"):
        graph = onnx.load(tiny_cascade(BF16)[1] / stage / "model.onnx").graph
        types = {tensor.data_type for tensor in graph.initializer if np.prod(tensor.dims) >= 1024}
        assert onnx.TensorProto.BFLOAT16 in types
        assert onnx.TensorProto.FLOAT not in types


@pytest.mark.parametrize("config", [{}, {"scaler": 2.0, "s": 0.01}, {"scaler": 0.7}])
def test_a_table_is_its_scheduler(config):
    arrays, facts = wuerstchen.tables(config)
    assert facts["max_steps"] == 100
    for steps in CHECKED:
        rows = SamplerTables(**arrays).steps(steps)
        generator = torch.Generator().manual_seed(steps)
        latents, *randoms = (torch.randn((1, 4, 8, 8), generator=generator) for _ in range(1 + 2 * steps))
        outputs, noises = randoms[:steps], randoms[steps:]
        theirs = pipelines_loop(wuerstchen.scheduler(config), steps, latents, outputs, noises)
        ours = run_table(
            rows, latents.numpy(), lambda _x, _t, k, o=outputs: o[k].numpy(), iter(n.numpy() for n in noises)
        )[-1]
        assert rows.draws.tolist() == [1] * steps
        assert relative(ours, theirs.numpy()) <= TOLERANCE, steps


def pipelines_loop(scheduler, steps, latents, outputs, noises):
    """StableCascadePriorPipeline's lines, with random outputs."""
    scheduler.set_timesteps(steps)
    latents = latents * scheduler.init_noise_sigma
    with tapped(scheduler) as draws:
        draws.source = iter(noises)
        for t, output in zip(scheduler.timesteps[:-1], outputs, strict=True):
            timestep_ratio = t.expand(latents.size(0)).to(latents.dtype)
            latents = scheduler.step(output, timestep_ratio, latents).prev_sample
    return latents


def test_both_folders_tables_are_their_own(tiny_cascade):
    build = tiny_cascade(OWN_ENCODER)[1]
    model = Manifest.load(build).model
    prior, decoder = (load_tables(build / card.path).steps(4) for card in (model.prior_table, model.decoder_table))
    np.testing.assert_array_equal(prior.timestep, [1, 0.75, 0.5, 0.25])
    np.testing.assert_array_equal(prior.timestep, decoder.timestep)
    assert not np.allclose(prior.noise_preds, decoder.noise_preds)


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def another_scheduler(prior):
    change_json(decoder_of(prior) / "model_index.json", scheduler=["diffusers", "DDPMScheduler"])


def other_prompts(prior):
    file = decoder_of(prior) / "tokenizer/tokenizer.json"
    file.write_text(file.read_text().replace('"Lowercase"', '"NFD"'))


def only_a_pickle(prior):
    for file in (decoder_of(prior) / "vqgan").glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))


def remake_unet(folder, **changes):
    """Save another UNet in a folder, whose weights are those of its changed config."""
    StableCascadeUNet.from_config({**StableCascadeUNet.load_config(folder), **changes}).save_pretrained(folder)


def another_effnet(prior):
    remake_unet(decoder_of(prior) / "decoder", effnet_in_channels=5)


def no_image_embeddings(prior):
    remake_unet(prior / "prior", clip_image_in_channels=None)


def an_unknown_class(prior):
    index = decoder_of(prior) / "model_index.json"
    change_json(index, vqgan=["wuerstchen", "NewVQModel"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (another_scheduler, "decoder scheduler: DDPMScheduler; supported: DDPMWuerstchenScheduler"),
        (other_prompts, "decoder tokenizer: differs from the prior's; supported: the same"),
        (only_a_pickle, "vqgan: no .safetensors file in .*; pickles are not read"),
        (another_effnet, "decoder/config.json: effnet_in_channels 5; supported: the prior's in_channels, "),
        (no_image_embeddings, "prior/config.json: clip_image_in_channels None; supported: "),
        (an_unknown_class, "model_index.json: vqgan NewVQModel; supported: PaellaVQModel"),
    ],
)
def test_folders_that_do_not_fit_are_refused_by_name(folders, tmp_path, spoil, message):
    spoil(folders)
    with pytest.raises(ExportError, match=message):
        export(folders, tmp_path / "out", ExportOptions(decoder=decoder_of(folders), size=size(PLAIN)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"decoder": None}, "--decoder: missing; Stable Cascade also needs the folder of a StableCascadeDecoder"),
        ({"refiner": "x"}, "--refiner: x given; not an option of Stable Cascade folders"),
        ({"samplers": ("euler",)}, "--sampler: .* given; not an option of Stable Cascade folders"),
        ({"size": 170}, "size: 170 pixels; legal: .*128, 168, 256"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(folders, tmp_path, given, message):
    options = {"decoder": decoder_of(folders), "size": size(PLAIN), **given}
    with pytest.raises(ExportError, match=message):
        export(folders, tmp_path / "out", ExportOptions(**options))


def test_the_decoders_folder_in_the_priors_place_is_refused(folders, tmp_path):
    with pytest.raises(ExportError, match="a StableCascadeDecoderPipeline; the prior's folder comes first"):
        export(decoder_of(folders), tmp_path / "out", ExportOptions(decoder=folders))


def test_a_decoder_for_sdxl_is_refused(folders, tmp_path):
    change_json(folders / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(ExportError, match=r"--decoder: .* given; not an option of SDXL folders"):
        export(folders, tmp_path / "out", ExportOptions(decoder=folders))


def test_image_parts_of_a_prior_are_not_looked_at(folders, tmp_path):
    change_json(folders / "model_index.json", image_encoder=["transformers", "X"], feature_extractor=[None, None])
    (decoder_of(folders) / "stage_b_lite.safetensors").write_bytes(b"")
    with pytest.raises(ExportError, match="size: 100 pixels"):  # what is looked at after that
        export(folders, tmp_path / "out", ExportOptions(decoder=decoder_of(folders), size=100))


def test_a_second_run_makes_only_what_changed(tiny_cascade, tmp_path):
    weights, build = tiny_cascade(PLAIN)
    build = shutil.copytree(build, tmp_path / "build")
    times = {path: path.stat().st_mtime_ns for path in build.rglob("*.onnx")}
    previews = Manifest.load(build).model.previews
    (build / "samplers/prior.npz.xz").write_bytes(b"harmed")
    manifest = export(
        weights, build, ExportOptions(decoder=decoder_of(weights), size=size(PLAIN), prior_num_inference_steps=7)
    )
    assert {path: path.stat().st_mtime_ns for path in build.rglob("*.onnx")} == times
    assert manifest.model.previews == previews
    assert manifest.model.default_prior_num_inference_steps == 7
    manifest.verify()
