"""Folders as people have them: what diffusers draws is drawn alike, all else is refused in one line before anything is made."""

from __future__ import annotations

import codecs
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDPMScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel
from typer.testing import CliRunner

from triptych.cli.app import app
from triptych_export import samplers
from triptych_export.build import ExportOptions, export
from triptych_export.errors import ExportError
from triptych_export.sdxl.recipe import BASE
from triptych_export.tokenizers import export_tokenizer
from triptych_export.weights import Weights
from triptych_server import Server
from triptych_serving.manifest import Manifest
from triptych_serving.tokenizers import PromptTokenizer

from .. import plain, tiny_sdxl

SEED = 2
TEXT, UNET, VAE = (
    "text_encoder/model.safetensors",
    *(f"{p}/diffusion_pytorch_model.safetensors" for p in ("unet", "vae")),
)
TRIPTYCH = Path(sys.executable).with_name("triptych")
# A locale whose encoding is ASCII, and a Python that keeps to it.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd") / "weights"
    tiny_sdxl.make(folder, SEED)
    return folder


@pytest.fixture
def weights(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "weights")


def change_json(file, *without, **changes):
    document = {**json.loads(file.read_text("utf-8")), **changes}
    kept = {name: value for name, value in document.items() if name not in without}
    file.write_text(json.dumps(kept, ensure_ascii=False), "utf-8")


def change_weights(file, change):
    made = {new: value for key, value in load_file(file).items() if (new := change(key))}
    save_file(made, file, metadata={"format": "pt"})


def name_class(folder, part, name):
    change_json(folder / "model_index.json", **{part: ["diffusers", name]})


def add_inversion(folder, word="<cat-toy>", vectors=3):
    """Several vectors for one word, as diffusers loads and saves them, with tokenizers that normalise as CLIP's."""
    torch.manual_seed(3)
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    normalizer = {"type": "Sequence", "normalizers": [{"type": "NFC"}, spaces, {"type": "Lowercase"}]}
    for part in ("tokenizer", "tokenizer_2"):
        change_json(folder / part / "tokenizer.json", normalizer=normalizer)
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    for encoder, tokenizer in (
        (pipeline.text_encoder, pipeline.tokenizer),
        (pipeline.text_encoder_2, pipeline.tokenizer_2),
    ):
        drawn = torch.randn(vectors, encoder.config.hidden_size)
        pipeline.load_textual_inversion(drawn, token=word, text_encoder=encoder, tokenizer=tokenizer)
    shutil.rmtree(folder)
    pipeline.save_pretrained(folder, safe_serialization=True)


def adapter_in_text_encoder(folder):
    change_weights(folder / TEXT, lambda key: key.replace("q_proj.", "q_proj.base_layer."))


def adapter_in_unet(folder):
    change_weights(folder / UNET, lambda key: key.replace("to_q.", "to_q.base_layer."))


def half_a_vae(folder):
    change_weights(folder / VAE, lambda key: None if key.startswith("post_quant_conv") else key)


def narrower_config(folder):
    change_json(folder / "text_encoder/config.json", intermediate_size=7)


def cut(file):
    def spoil(folder):
        (folder / file).write_bytes((folder / file).read_bytes()[:-1000])

    return spoil


def a_pointer(folder):
    (folder / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5135149760\n")


def tiny_autoencoder(folder):
    shutil.rmtree(folder / "vae")
    AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4,
        decoder_block_out_channels=(16,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    ).save_pretrained(folder / "vae")
    name_class(folder, "vae", "AutoencoderTiny")


def written(file, change):
    def spoil(folder):
        (folder / file).write_bytes(change((folder / file).read_bytes()))

    return spoil


def clipping(folder):
    DDPMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    change_json(folder / "scheduler/scheduler_config.json", "clip_sample", _class_name="DDPMScheduler")
    name_class(folder, "scheduler", "DDPMScheduler")


def unknown_scheduler(folder):
    name_class(folder, "scheduler", "DPMSolverSDEScheduler")


def no_length(folder):
    change_json(folder / "tokenizer_2/tokenizer_config.json", "model_max_length")


def more_words(folder):
    change_json(folder / "text_encoder_2/config.json", vocab_size=100)
    weights = load_file(folder / "text_encoder_2/model.safetensors")
    for key in weights:
        if key.endswith("token_embedding.weight"):
            weights[key] = weights[key][:100].clone()
    save_file(weights, folder / "text_encoder_2/model.safetensors", metadata={"format": "pt"})


REFUSED = [
    (
        adapter_in_text_encoder,
        rf"^{TEXT}: 6 weights missing \(\S+q_proj.bias, .* more\); 6 weights unexpected .*a LoRA was left",
    ),
    (adapter_in_unet, rf"^{UNET}: 16 weights missing \(.*\); 16 weights unexpected \(.*base_layer.*a LoRA was left in"),
    (
        half_a_vae,
        rf"^{VAE}: 2 weights missing \(post_quant_conv.bias, post_quant_conv.weight\); supported: .* in part$",
    ),
    (narrower_config, rf"^{TEXT}: 9 weights of another size \(\S+ \[\d+\] instead of \[7\], .*another model's"),
    (cut(TEXT), rf"^{TEXT}: \d+ bytes, .*; supported: a whole safetensors file$"),
    (cut(UNET), rf"^{UNET}: \d+ bytes, .*; supported: a whole safetensors file$"),
    (a_pointer, rf"^{UNET}: a pointer of Git LFS, not the file \(git lfs pull\); supported: "),
    (tiny_autoencoder, r"^model_index.json: vae AutoencoderTiny; supported: AutoencoderKL$"),
    (
        written("model_index.json", lambda text: codecs.BOM_UTF8 + text),
        r"^model_index.json: begins with a byte order mark",
    ),
    (
        written("unet/config.json", lambda text: text.rstrip(b"}\n") + b",\n}\n"),
        r"^unet/config.json: .* \(line \d+, column 1\)",
    ),
    (written("vae/config.json", lambda _text: b""), r"^vae/config.json: 0 bytes; supported: JSON"),
    (written("vae/config.json", lambda _text: bytes(500)), r"^vae/config.json: holds NUL bytes"),
    (written("vae/config.json", lambda _text: b"[1]"), r"^vae/config.json: a JSON list; supported: an object"),
    (
        written("vae/config.json", lambda _text: b'"\xff"'),
        r"^vae/config.json: invalid start byte at byte 1; supported: ",
    ),
    (
        written("tokenizer/tokenizer_config.json", lambda _text: b"{"),
        r"^tokenizer/tokenizer_config.json: .*line 1, column 2",
    ),
    (clipping, r"^scheduler/scheduler_config.json: DDPMScheduler with clip_sample true is not linear"),
    (unknown_scheduler, r"^scheduler: DPMSolverSDEScheduler; supported: DDIMScheduler, "),
    (
        no_length,
        r"^tokenizer_2: model_max_length 10+\d*; supported: up to text_encoder_2's max_position_embeddings, \d+$",
    ),
    (more_words, r"^tokenizer_2: number of words \d+; supported: up to text_encoder_2's vocab_size, 100$"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED)
def test_a_faulty_folder_is_refused_in_one_line_before_anything_is_made(weights, tmp_path, spoil, message):
    spoil(weights)
    with pytest.raises(ExportError, match=message) as refused:
        export(weights, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_what_older_transformers_saved_beside_the_weights_is_no_fault(weights):
    stored = load_file(weights / TEXT)
    save_file(
        {**stored, "text_model.embeddings.position_ids": torch.arange(77)[None]}, weights / TEXT, {"format": "pt"}
    )
    assert Weights.open(weights, BASE).load("text_encoder") is not None


@pytest.fixture
def odd(weights):
    """A folder with all that diffusers takes."""
    add_inversion(weights)
    name_class(weights, "scheduler", "EulerAncestralDiscreteScheduler")
    change_json(weights / "vae/config.json", "latent_channels", "in_channels", "out_channels")
    changes = {"sample_size": [12, 24], "_name_or_path": "C:/Modelle/Größe/模型"}
    change_json(weights / "unet/config.json", "in_channels", "out_channels", **changes)
    return weights


def test_an_odd_folder_is_drawn_as_diffusers_draws_it(odd, tmp_path):
    build = tmp_path / "build"
    command = [TRIPTYCH, "export", odd, "-o", build, "--sampler", "euler_a:default", "--quiet"]
    done = subprocess.run(command, env={**os.environ, **ASCII}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    card = Manifest.load(build).model
    assert card.default_sampler == "euler_a"
    scale = card.vae_scale_factor
    assert (card.default_height, card.default_width) == (12 * scale, 24 * scale)
    pipeline = tiny_sdxl.load(odd)
    assert isinstance(pipeline.scheduler, EulerAncestralDiscreteScheduler)
    assert_drawn_alike(
        build,
        pipeline,
        {"prompt": "a <cat-toy> in snow", "negative_prompt": "", "seed": 5},
        {"prompt": "a red fox", "negative_prompt": "<cat-toy>, <cat-toy>", "seed": 6},
    )


def assert_drawn_alike(build, pipeline, *requests):
    card = Manifest.load(build).model
    size = {"height": card.default_height, "width": card.default_width}
    with Server(build, http_port=0, grpc_port=0, metrics_port=0) as server:
        for given in requests:
            settings = {"num_inference_steps": 4, "guidance_scale": 5.0, **given}
            served = np.asarray(Image.open(io.BytesIO(plain.grpc(server.addresses.grpc, **settings)["image"])))
            generator = torch.Generator().manual_seed(settings.pop("seed"))
            drawn = np.asarray(pipeline(generator=generator, **settings, **size).images[0])
            assert np.abs(served.astype(int) - drawn.astype(int)).max() <= 1


def as_playground(folder):
    """EDM's preconditioning, latents with statistics of their own, and a UNet without its middle, as KOALA's."""
    EDMDPMSolverMultistepScheduler(sigma_max=80.0, sigma_min=0.002, sigma_data=0.5).save_pretrained(
        folder / "scheduler"
    )
    name_class(folder, "scheduler", "EDMDPMSolverMultistepScheduler")
    statistics = {"latents_mean": [-1.6, 1.1, -2.1, 0.4], "latents_std": [8.4, 5.9, 5.8, 5.5], "scaling_factor": 0.5}
    change_json(folder / "vae/config.json", **statistics)
    rebuild_unet(folder, mid_block_type=None)


def as_noobai(folder):
    """v-prediction of betas that end in noise alone, and a UNet of fewer layers, as SSD-1B's."""
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    EulerDiscreteScheduler(beta_schedule="scaled_linear", **options).save_pretrained(folder / "scheduler")
    name_class(folder, "scheduler", "EulerDiscreteScheduler")
    blocks = {"transformer_layers_per_block": [1, [2]], "reverse_transformer_layers_per_block": [[2, 1], 1]}
    rebuild_unet(folder, mid_block_type="UNetMidBlock2D", **blocks)


def rebuild_unet(folder, **shape):
    config = {**dict(UNet2DConditionModel.load_config(folder / "unet")), **shape}
    torch.manual_seed(1)
    UNet2DConditionModel.from_config(config).save_pretrained(folder / "unet")


@pytest.mark.parametrize(
    ("turn", "sampler"),
    [(as_playground, "edm_dpmpp_2m:karras"), (as_noobai, "euler:default")],
    ids=["playground", "noobai"],
)
def test_relatives_of_sdxl_are_drawn_as_diffusers_draws_them(weights, tmp_path, turn, sampler):
    turn(weights)
    export(weights, tmp_path / "build", ExportOptions(samplers=[sampler]))
    requests = ({"prompt": "a red fox", "seed": 5}, {"prompt": "a 3d robot", "seed": 6, "num_inference_steps": 9})
    assert_drawn_alike(tmp_path / "build", tiny_sdxl.load(weights), *requests)


PROMPTS = [
    "a <cat-toy> in snow",
    "<cat-toy>",
    "<CAT-TOY> and <Cat-Toy>",
    "<cat-toy><cat-toy> a<cat-toy>b",
    "<cat-toy>_1 alone, <cat-toy>_7",
    "<cat-toy >, no word of several vectors",
    "snow " * 70 + "<cat-toy> in snow",
]


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_words_of_several_vectors_are_spelt_out_as_diffusers_does_it(weights, tmp_path, part):
    add_inversion(weights)
    tokenizer = Weights.open(weights, BASE).load_tokenizer(part)
    card = export_tokenizer(tokenizer, tmp_path / part / "tokenizer.json", f"{part}/tokenizer.json", inversions=True)
    words = json.loads((tmp_path / card.multi_vector).read_text("utf-8"))
    assert words == {"<cat-toy>": "<cat-toy> <cat-toy>_1 <cat-toy>_2"}
    served, pipeline = PromptTokenizer(tmp_path / card.path, card, words), StableDiffusionXLPipeline
    assert pipeline._maybe_convert_prompt(None, PROMPTS[0], tokenizer) == "a <cat-toy> <cat-toy>_1 <cat-toy>_2 in snow"
    for prompt in PROMPTS:
        spelt_out = pipeline._maybe_convert_prompt(None, prompt, tokenizer)
        padded = {"padding": "max_length", "max_length": card.max_length, "truncation": True}
        assert served([prompt])[0].tolist() == tokenizer(spelt_out, **padded).input_ids, prompt


def test_the_words_that_do_not_fit_are_told_as_they_were_given(weights, tmp_path):
    add_inversion(weights)
    tokenizer = Weights.open(weights, BASE).load_tokenizer("tokenizer")
    card = export_tokenizer(tokenizer, tmp_path / "tokenizer.json", "tokenizer.json", inversions=True)
    words = json.loads((tmp_path / card.multi_vector).read_text("utf-8"))
    served, room = PromptTokenizer(tmp_path / card.path, card, words), card.max_length - 2
    assert (
        served.cut("<cat-toy> " * (room // 3) + "snow " * (room % 3) + "snow, <cat-toy>").strip() == "snow, <cat-toy>"
    )
    assert served.cut("snow " * (room - 1) + "<cat-toy> in <cat-toy>") == "<cat-toy> in <cat-toy>"
    assert served.cut("<cat-toy> in snow") == ""


def test_a_left_out_option_is_the_classs_own_when_a_refiner_is_compared():
    config = {"_class_name": "EulerDiscreteScheduler", "beta_end": 0.012}
    assert samplers.completed(config) == samplers.completed({**config, "timestep_spacing": "linspace"})
    assert samplers.completed(config) != samplers.completed({**config, "timestep_spacing": "trailing"})


@pytest.mark.parametrize(
    ("options", "pair"),
    [
        # NoobAI's, Pony's of that kind, and Playground 2.5's
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, ("euler", "default")),
        (
            {"algorithm_type": "dpmsolver++", "rho": 7.0, "sigma_data": 0.5, "sigma_max": 80.0},
            ("edm_dpmpp_2m", "karras"),
        ),
    ],
)
def test_schedulers_of_well_known_models_are_taken(options, pair):
    name = samplers.SAMPLERS[pair[0]].scheduler
    config = dict(getattr(diffusers, name)(**options).config) | {"_class_name": name}
    samplers.check(config)
    assert samplers.default_sampler(config) == pair


def test_heads_that_tensorrt_rtx_cannot_compile_are_refused_before_anything_is_built(weights, tmp_path):
    encoder = CLIPTextModel(CLIPTextConfig(**tiny_sdxl.clip(48, 1, 77, 32).to_dict() | {"num_attention_heads": 4}))
    encoder.save_pretrained(weights / "text_encoder")
    options = ExportOptions(target="tensorrt-rtx", compute_capabilities=["sm89"])
    refused = (
        r"^text_encoder/config.json: heads of 12 \(hidden_size 48, num_attention_heads 4\); supported by TensorRT-RTX"
    )
    with pytest.raises(ExportError, match=refused):
        export(weights, tmp_path / "out", options)
    assert not list((tmp_path / "out").rglob("*.onnx"))


def test_a_snapshot_in_hugging_faces_cache_is_taken_and_the_cache_itself_names_it(tiny_folder, tmp_path):
    cache = tmp_path / "models--of--mine"
    snapshot = cache / "snapshots/0123abcd"
    for number, file in enumerate(file for file in tiny_folder.rglob("*") if file.is_file()):
        blob, link = cache / f"blobs/{number}", snapshot / file.relative_to(tiny_folder)
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert Weights.open(snapshot, BASE).source("unet") == Weights.open(tiny_folder, BASE).source("unet")
    with pytest.raises(ExportError, match=f"a cache of Hugging Face's; supported: a snapshot in it, as {snapshot}$"):
        export(cache, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "model.safetensors",
            r"a single file; supported: .* StableDiffusionXLPipeline.from_single_file\('.*model.safetensors'",
        ),
        ("model.ckpt", "a pickle; supported: a folder in diffusers layout with safetensors"),
    ],
)
def test_a_single_file_is_refused_with_what_makes_a_folder_of_it(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"\0")
    with pytest.raises(ExportError, match=message):
        export(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("options", [["--quiet"], []])
def test_an_error_is_printed_in_one_line_also_when_quiet(tmp_path, options):
    folder = tmp_path / ("folder " * 30).strip()
    folder.mkdir()
    done = CliRunner().invoke(app(["export"]), ["export", str(folder), "-o", str(tmp_path / "out"), *options])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == (
        f"triptych export: {folder}: has no model_index.json; a folder in diffusers layout is needed"
    )
