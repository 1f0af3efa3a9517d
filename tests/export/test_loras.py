"""LoRA files that an export merges: what is added, and what is refused by name."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from triptych_export.build import ExportOptions, export
from triptych_export.errors import ExportError
from triptych_export.sdxl.loras import PARTS, Lora, MergedWeights
from triptych_export.sdxl.recipe import BASE
from triptych_export.weights import Weights

from .. import tiny_lora, tiny_sdxl

KOHYAS = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
PEFTS = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("loras")
    tiny_sdxl.make(made / "weights", 2)
    pipeline = tiny_sdxl.load(made / "weights")
    tiny_lora.make(made / "kohya.safetensors", pipeline, 1, kohya=True)
    tiny_lora.make(made / "peft.safetensors", pipeline, 1, kohya=False)
    return made


@pytest.fixture
def weights(folder):
    return Weights.open(folder / "weights", BASE)


@pytest.mark.parametrize("naming", ["kohya", "peft"])
def test_every_pair_of_a_file_is_added_where_diffusers_adds_it(folder, weights, naming):
    file = folder / f"{naming}.safetensors"
    merged, theirs = MergedWeights.of(weights, [Lora(file, 0.7)]), tiny_sdxl.load(folder / "weights")
    theirs.load_lora_weights(str(file))
    theirs.fuse_lora(components=list(PARTS), lora_scale=0.7)
    theirs.unload_lora_weights()
    changed = 0
    for part in PARTS:
        plain, expected = weights.load(part).state_dict(), getattr(theirs, part).state_dict()
        ours = merged.load(part).state_dict()
        assert all(torch.equal(ours[name], expected[name]) for name in expected)
        changed += sum(not torch.equal(ours[name], plain[name]) for name in plain)
        assert merged.source(part) != weights.source(part)
    assert changed == sum(name.endswith(("lora_A.weight", "lora_down.weight")) for name in load_file(file))
    assert merged.source("vae") == weights.source("vae")


def test_each_layer_has_its_own_rank_and_alpha(weights, tmp_path):
    """diffusers with PEFT takes the most common alpha for all."""
    tensors = {}
    for layer, rank, alpha in (("to_q", 2, 1.0), ("to_k", 3, 6.0)):
        name = f"{KOHYAS.removesuffix('to_q')}{layer}"
        down, up = torch.randn(rank, 64), torch.randn(64, rank)
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(alpha),
        }
    save_file(tensors, tmp_path / "two.safetensors")
    merged = MergedWeights.of(weights, [Lora(tmp_path / "two.safetensors", -0.5)]).load("unet").state_dict()
    plain = weights.load("unet").state_dict()
    for layer, scale in (("to_q", 1 / 2), ("to_k", 6 / 3)):
        name = f"{KOHYAS.removesuffix('to_q')}{layer}"
        added = tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"] * scale * -0.5
        weight = f"{PEFTS.removeprefix('unet.').removesuffix('to_q')}{layer}.weight"
        torch.testing.assert_close(merged[weight], plain[weight] + added)


def pair(name, rank=2, inner=64, out=64):
    return {f"{name}.lora_down.weight": torch.zeros(rank, inner), f"{name}.lora_up.weight": torch.zeros(out, rank)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            pair("lora_unet_mid_block_attentions_0_transformer_blocks_7_attn1_to_q"),
            "2 unknown weights .*blocks.7.attn1",
        ),
        (pair(KOHYAS, inner=320), "2 unknown weights .*attn1"),
        (pair("lora_te3_encoder_block_0"), "lora_te3_encoder_block_0"),
        ({f"{KOHYAS}.lora_down.weight": torch.zeros(2, 64)}, "lora_up"),
        ({f"{PEFTS}.lora_A.weight": torch.zeros(2, 64)}, "1 unknown weights .*to_q.lora_A"),
        (pair(KOHYAS) | {f"{KOHYAS}.dora_scale": torch.zeros(64)}, f"1 unknown weights .{KOHYAS}.dora_scale"),
        ({f"{KOHYAS}.hada_w1_a": torch.zeros(2, 64)}, f"1 unknown weights .{KOHYAS}.hada_w1_a"),
        ({"transformer.blocks.0.lora_A.weight": torch.zeros(2, 64)}, "1 unknown weights .transformer.blocks.0.lora_A"),
        ({"conv_in.weight": torch.zeros(2)}, "1 unknown weights .conv_in.weight"),
    ],
)
def test_weights_that_are_not_the_models_are_named_and_stop(weights, tmp_path, tensors, message):
    save_file(tensors, file := tmp_path / "foreign.safetensors")
    with pytest.raises(ExportError, match=f"^{file}: .*{message}.*; supported: low-rank pairs"):
        MergedWeights.of(weights, [Lora(file)])


def test_what_peft_notes_and_would_change_the_sum_is_refused(weights, tmp_path):
    tensors = {f"{PEFTS}.lora_A.weight": torch.zeros(2, 64), f"{PEFTS}.lora_B.weight": torch.zeros(64, 2)}
    note = {"lora_adapter_metadata": '{"unet.lora_alpha": 4, "unet.use_rslora": true}'}
    save_file(tensors, file := tmp_path / "noted.safetensors", note)
    with pytest.raises(ExportError, match=r"unet\.use_rslora True; supported: plain LoRA"):
        MergedWeights.of(weights, [Lora(file)])


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"])
def test_a_file_that_is_no_safetensors_is_refused(weights, tmp_path, content):
    (file := tmp_path / "harmed.safetensors").write_bytes(content)
    with pytest.raises(ExportError, match=f"^{file}: .*; supported: low-rank pairs"):
        MergedWeights.of(weights, [Lora(file)])


def test_a_weight_stands_behind_the_files_name(folder):
    file = folder / "peft.safetensors"
    assert Lora.parse(str(file)) == Lora(file, 1.0)
    assert Lora.parse(f"{file}:-0.25") == Lora(file, -0.25)


@pytest.mark.parametrize("given", ["{}:much", "{}:nan", "none.safetensors", "none.safetensors:0.5", ""])
def test_no_file_or_no_weight_is_refused(folder, given):
    with pytest.raises(ExportError, match=r"^--lora: .* given; legal: FILE or FILE:WEIGHT"):
        Lora.parse(given.format(folder / "peft.safetensors"))


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / "style.ckpt").write_bytes(b"x")
    with pytest.raises(ExportError, match=r"legal: FILE or FILE:WEIGHT, a .safetensors file"):
        Lora.parse(str(tmp_path / "style.ckpt"))


def test_an_unknown_distillation_is_refused(folder):
    with pytest.raises(ExportError, match="--distilled: 'turbo' given; legal: lightning, hyper-sd, lcm, dmd2"):
        export(folder / "weights", folder / "build", ExportOptions(distilled="turbo"))
