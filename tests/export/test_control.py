"""ControlNets at export: which folders are taken, what is refused and in what words, how residuals are laid side by side."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from triptych_export.build import ExportOptions
from triptych_export.errors import ExportError
from triptych_export.sdxl import control, residuals
from triptych_export.sdxl.recipe import SdxlExport
from triptych_serving.manifest import Manifest, ManifestError

from .. import tiny_control, tiny_sdxl
from ..tiny_builds import CONTROLS, control_of

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny SDXL, a ControlNet of each kind for it, and one for another SDXL."""
    folder = tmp_path_factory.mktemp("control")
    tiny_sdxl.make(folder / "base", 0)
    tiny_sdxl.make(folder / "other", 2)
    for kind in ("full", "small", "union"):
        tiny_control.make(folder / kind, folder / "base", 1, kind)
    tiny_control.make(folder / "stranger", folder / "other", 1, "full")
    return folder


def opened(folders, *controls, **options):
    return SdxlExport.open(folders / "base", ExportOptions(control=controls, **options))


def refusal(folders, *controls, **options):
    with pytest.raises(ExportError) as error:
        opened(folders, *controls, **options)
    return str(error.value)


def test_controls_of_every_kind_have_a_stage_each(folders):
    export = opened(folders, f"a={folders}/full", f"b={folders}/small", f"c={folders}/union:1")
    stages = export.stages(24)
    own = [f"{kind}_{name}" for kind in ("picture", "control") for name in "abc"]
    assert [*stages][-7:] == ["unet_control", *own]
    added = [stages[name].spec.outputs["control"] for name in ("control_a", "control_b", "control_c")]
    assert added == [stages["unet_control"].spec.inputs["control"]] * 3


def test_what_is_no_control_is_told_in_the_first_seconds(folders, tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "ControlNetXSAdapter"}')
    full, union = folders / "full", folders / "union"
    for given, words in (
        ([f"{full}"], "legal: NAME=FOLDER or NAME=FOLDER:MODE"),
        ([f"../x={full}"], "legal: NAME=FOLDER"),
        ([f"Edges={full}"], "the name of a … z"),
        ([f"a={full}x"], "has no config.json; supported: a ControlNet's folder"),
        ([f"a={tmp_path}"], "_class_name 'ControlNetXSAdapter'; supported: ControlNetModel, ControlNetUnionModel"),
        ([f"a={full}", f"a={full}"], "--control: a given twice"),
        ([f"a={full}:1"], "--control a: mode '1' given; legal: NAME=FOLDER: it is no union"),
        ([f"a={union}"], "--control a: no mode given; legal: NAME=FOLDER:MODE, 0 … 2"),
        ([f"a={union}:3"], "--control a: mode '3' given; legal: NAME=FOLDER:MODE, 0 … 2"),
        ([f"a={union}:x"], "--control a: mode 'x' given"),
        ([f"a={folders}/stranger"], "--control a: config.json: block_out_channels"),
    ):
        assert words in refusal(folders, *given), given
    assert "--control: given with target cuda; supported: target cpu" in refusal(
        folders, f"a={full}", target="cuda", precisions={}
    )


def test_weights_that_are_not_its_configs_are_named(folders, tmp_path):
    shutil.copytree(folders / "full", tmp_path / "full")
    tensors = load_file(tmp_path / "full" / WEIGHTS)
    bias = tensors.pop("controlnet_mid_block.bias")
    save_file(tensors, tmp_path / "full" / WEIGHTS)
    assert "1 weights missing (controlnet_mid_block.bias)" in refusal(folders, f"a={tmp_path}/full")
    save_file({**tensors, "controlnet_mid_block.bias": bias, "lora_up": bias.clone()}, tmp_path / "full" / WEIGHTS)
    assert "1 weights unexpected (lora_up)" in refusal(folders, f"a={tmp_path}/full")
    (tmp_path / "full" / WEIGHTS).write_bytes(b"cut")
    assert "supported: a whole safetensors file" in refusal(folders, f"a={tmp_path}/full")
    (tmp_path / "full" / WEIGHTS).unlink()
    assert "no .safetensors file in " in refusal(folders, f"a={tmp_path}/full")


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("global_pool_conditions", True, "global_pool_conditions True; supported: False"),
        ("controlnet_conditioning_channel_order", "gbr", "'gbr'; supported: 'rgb' or 'bgr'"),
        ("addition_time_embed_dim", 8, "addition_time_embed_dim 8; supported: the UNet's, 16"),
        ("layers_per_block", 5, "supported"),
    ],
)
def test_settings_that_do_not_fit_are_named(folders, tmp_path, setting, value, words):
    shutil.copytree(folders / "full", tmp_path / "full")
    config = json.loads((tmp_path / "full/config.json").read_text())
    (tmp_path / "full/config.json").write_text(json.dumps({**config, setting: value}))
    assert words in refusal(folders, f"a={tmp_path}/full")


def test_residuals_are_laid_out_as_diffusers_has_them(folders):
    """Folded and unfolded they are what they were, and they are as many and as large as a ControlNet gives."""
    unet = UNet2DConditionModel.load_config(folders / "base", subfolder="unet")
    net = ControlNetModel.from_pretrained(folders / "full")
    side, rows = 8, 2
    states = torch.zeros(rows, 4, unet["cross_attention_dim"])
    pooled = unet["projection_class_embeddings_input_dim"] - 6 * unet["addition_time_embed_dim"]
    added = {"text_embeds": torch.zeros(rows, pooled), "time_ids": torch.zeros(rows, 6)}
    pixels = side * 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    with torch.no_grad():
        down, mid = net(
            torch.randn(rows, 4, side, side),
            torch.ones(rows),
            states,
            torch.rand(rows, 3, pixels, pixels),
            added_cond_kwargs=added,
            return_dict=False,
        )
    together = residuals.packed([*down, mid], unet)
    assert together.shape[1] == residuals.channels(unet)
    apart = residuals.unpacked(together, unet)
    assert all(torch.equal(one, other) for one, other in zip(apart, [*down, mid], strict=True))
    assert mid.abs().max() > 0.01


def test_a_unions_row_is_what_it_is_alone(folders):
    union = control.ControlFolder.parse(f"a={folders}/union:1")
    stage, net = union.module(union.load("controlnet")), union.load("controlnet")
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(3, net.transformer_layes[0].attn.embed_dim, generator=random)[:, None]
    with torch.no_grad():
        together = stage.controlnet.transformer_layes[0](rows)
        alone = [net.transformer_layes[0](row[None]) for row in rows]
        mixed = net.transformer_layes[0](rows)
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)
    assert not torch.allclose(together, mixed, atol=1e-3), "diffusers' own looks from row to row"


def test_the_manifest_says_what_is_served_and_what_it_takes(tiny):
    for seed, controls in CONTROLS.items():
        weights, build = tiny(seed)
        manifest = Manifest.load(build)
        assert manifest.model.controls == tuple(controls)
        sizes, spec = manifest.model.default_sizes, manifest.stages["unet_control"]["inputs"]["control"]
        numbers = [sizes.get(dim, dim) for dim in spec["shape"]]
        assert manifest.model.control_bytes == 4 * torch.Size(numbers).numel()
        for name in controls:
            assert manifest.stages[f"control_{name}"]["batch_invariant"]
            assert control_of(weights, name).is_dir()


def test_a_build_that_lacks_a_control_is_refused(tiny, tmp_path):
    build = tiny(min(CONTROLS))[1]
    document = json.loads((build / "manifest.json").read_text())
    del document["stages"]["control_edges"]
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ManifestError, match=re.escape("stages.control_edges: missing")):
        Manifest.load(tmp_path)
