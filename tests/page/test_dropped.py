"""Dropped pictures: whoever wrote their settings, they come back, and what cannot be honoured is said."""

from __future__ import annotations

import json
import time

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from triptych import InvalidRequest
from triptych_contract.adapters import Adapter
from triptych_page import a1111, invokeai
from triptych_page.dropped import read
from triptych_page.fitting import fit, plain, short
from triptych_page.forms import forms_of

from .described import all_forms, described

FORMS = all_forms()
RECEIPT = {
    "model": "sdxl-demo",
    "family": "sdxl",
    "prompt": "a fox, <b>red</b>",
    "negative_prompt": None,
    "seed": 2**63 - 1,
    "height": 128,
    "width": 160,
    "output_format": "png",
    "num_inference_steps": 12,
    "guidance_scale": 7.300000190734863,
    "guidance_rescale": 0.0,
    "guidance_end": 1.0,
    "clip_skip": 1,
    "original_size": [128, 160],
    "target_size": [128, 160],
    "crops_coords_top_left": [0, 0],
    "sampler": "dpmpp_2m",
    "schedule": "karras",
    "init_image": None,
    "mask": None,
    "strength": None,
    "denoising_end": None,
}
A1111 = """a fox, (red:1.3), <lora:fur:0.8>
on two lines
Negative prompt: blur,
low quality
Steps: 25, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 12345678901, Size: 128x192, Model hash: abc, Model: dreamshaper, \
Clip skip: 2, Hires upscale: 2, Lora hashes: "fur: 12, b: 3", Version: v1.10.0"""
INVOKE = {
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "a fox",
    "negative_prompt": "blur",
    "seed": 7,
    "steps": 30,
    "cfg_scale": 6.5,
    "width": 128,
    "height": 128,
    "scheduler": "dpmpp_2m_k",
    "model": {"key": "k", "name": "juggernaut", "base": "sdxl"},
    "loras": [{"name": "fur"}],
    "app_version": "5.0",
}


def png(tmp_path, **texts):
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key.replace("__", "-"), text)
    path = tmp_path / "dropped.png"
    Image.new("RGB", (8, 8), "red").save(path, pnginfo=info)
    return path


def test_our_own_file_fills_in_everything(tmp_path):
    found = read(png(tmp_path, triptych=json.dumps(RECEIPT)), FORMS)
    assert (found.form, found.written_by, found.left_out) == ("sdxl", "Triptych", ())
    assert found.settings["seed"] == 2**63 - 1
    assert found.settings["guidance_scale"] == 7.3
    assert found.settings["clip_skip"] == 1
    assert not {"original_size", "init_image", "strength"} & set(found.settings)


def test_our_own_jpeg_is_read_as_well(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = json.dumps(RECEIPT)
    path = tmp_path / "dropped.jpeg"
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    assert read(path, FORMS).settings["prompt"] == RECEIPT["prompt"]


def test_a_refined_picture_asks_for_the_refiner(tmp_path):
    path = png(tmp_path, triptych=json.dumps({**RECEIPT, "height": 128, "width": 128, "denoising_end": 0.75}))
    assert read(path, FORMS).form == "sdxl+refiner"
    alone = read(path, forms_of(described()))
    assert alone.form == "sdxl"
    assert any(told.startswith("denoising_end: 0.75") for told in alone.left_out)


def test_a_picture_made_from_another_says_so(tmp_path):
    picture = {"sha256": "ab" * 32, "width": 8, "height": 8}
    found = read(png(tmp_path, triptych=json.dumps({**RECEIPT, "init_image": picture, "strength": 0.5})), FORMS)
    assert found.settings["strength"] == 0.5
    assert found.left_out == ("init_image: the picture itself is not in the file; add it again",)


def test_pairs_come_back_where_they_say_anything(tmp_path):
    told = {"original_size": [256, 320], "crops_coords_top_left": [0, 64]}
    found = read(png(tmp_path, triptych=json.dumps({**RECEIPT, **told})), FORMS)
    pairs = {name: value for name, value in found.settings.items() if isinstance(value, tuple)}
    assert pairs == {"original_size": (256, 320), "crops_coords_top_left": (0, 64)}
    assert found.left_out == ()


def test_another_model_is_said(tmp_path):
    found = read(png(tmp_path, triptych=json.dumps({**RECEIPT, "model": "sdxl-base"})), FORMS)
    assert found.left_out == ("model: sdxl-base; this server has sdxl-demo",)


def test_cascade_without_cascade_is_refused(tmp_path):
    receipt = {
        **{name: RECEIPT[name] for name in ("prompt", "negative_prompt", "seed", "height", "width", "output_format")},
        "family": "stable_cascade",
        "model": "cascade-small",
        "prior_num_inference_steps": 20,
        "prior_guidance_scale": 4.0,
        "num_inference_steps": 10,
        "decoder_guidance_scale": 0.0,
    }
    path = png(tmp_path, triptych=json.dumps(receipt))
    assert read(path, FORMS).form == "stable_cascade"
    assert read(path, FORMS).settings["prior_num_inference_steps"] == 20
    with pytest.raises(InvalidRequest, match="file: a picture of stable_cascade given; legal: SDXL"):
        read(path, forms_of(described()))


def test_a1111_is_read_and_its_rest_told(tmp_path):
    found = read(png(tmp_path, parameters=A1111), FORMS)
    assert found.written_by == "A1111"
    assert found.settings == {
        "prompt": "a fox, (red:1.3),\non two lines",
        "negative_prompt": "blur,\nlow quality",
        "num_inference_steps": 25,
        "guidance_scale": 7.5,
        "seed": 12345678901,
        "clip_skip": 1,
        "width": 128,
        "height": 192,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "prompt_syntax": "a1111",
    }
    told = "\n".join(found.left_out)
    for rest in (
        "dreamshaper",
        "lora: fur:0.8, which SDXL does not have",
        "Hires upscale: 2",
        "Lora hashes: fur: 12, b: 3",
    ):
        assert rest in told
    assert "Version" not in told


def test_loras_of_a1111_are_asked_for_where_a_model_takes_them(tmp_path):
    served = described()
    served["sdxl"]["model"]["adapter_rank"] = 16
    served["sdxl"]["adapters"] = {"fur": {}, "ink": {}}
    parameters = A1111.replace("<lora:fur:0.8>", "<lora:fur:0.8> <lora:ink> <lora:gone:0.5> <hypernet:b:1>")
    found = read(png(tmp_path, parameters=parameters), forms_of(served))
    assert found.settings["lora"] == (Adapter("fur", 0.8), Adapter("ink"))
    assert "lora: gone:0.5, which this server does not have" in found.left_out
    assert found.settings["prompt"] == "a fox, (red:1.3), <hypernet:b:1>\non two lines"
    assert "network <hypernet:b:1>" in "\n".join(found.left_out)


@pytest.mark.parametrize(
    ("version", "syntax"),
    [("v1.9.4", "a1111"), ("triptych 0.1.0", None), ("triptych 0.1.0, Prompt syntax: a1111", "a1111")],
)
def test_prompts_are_read_as_their_writer_read_them(version, syntax):
    read_ = a1111.parse(f"a (red:1.3) fox\nSteps: 4, Sampler: Euler, CFG scale: 7, Seed: 1, Version: {version}")
    assert read_ is not None
    assert read_.settings.get("prompt_syntax") == syntax


def test_weights_are_told_where_the_family_has_none():
    read_ = a1111.parse(
        "a (red:1.3) fox\nSteps: 4, Sampler: DDPM Wuerstchen, Decoder steps: 10, Decoder CFG scale: 1.5"
    )
    assert read_ is not None
    assert "prompt_syntax" not in read_.settings
    assert any("(word:1.2)" in rest for rest in read_.left_out)


def test_a1111_of_today_names_the_schedule_by_itself():
    read_ = a1111.parse("a fox\nSteps: 4, Sampler: DPM++ 2M, Schedule type: Scaled linear, CFG scale: 7, Seed: 1")
    assert read_ is not None
    assert (read_.settings["sampler"], read_.settings["schedule"]) == ("DPM++ 2M", "scaled_linear")


def test_a1111_in_a_jpegs_comment(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode("utf-16-be")
    path = tmp_path / "dropped.jpg"
    Image.new("RGB", (8, 8)).save(path, exif=exif)
    assert read(path, FORMS).settings["seed"] == 12345678901


def test_a1111s_text_of_cascade_is_cascades():
    steps, decoder = "Steps: 20, Sampler: DDPM Wuerstchen, CFG scale: 4", "Decoder steps: 10, Decoder CFG scale: 1.5"
    read_ = a1111.parse(f"a fox\n{steps}, Seed: {2**63 - 1}, {decoder}")
    assert read_ is not None
    assert read_.family is FORMS["stable_cascade"].family
    assert read_.settings == {
        "prompt": "a fox",
        "seed": 2**63 - 1,
        "prior_num_inference_steps": 20,
        "prior_guidance_scale": 4,
        "num_inference_steps": 10,
        "decoder_guidance_scale": 1.5,
    }


@pytest.mark.parametrize("text", ["", "a fox", "Steps: many, Sampler: x", "Steps:", "a fox\nseed 7"])
def test_other_text_is_not_a1111s(text):
    assert a1111.parse(text) is None


def test_invokeai_is_read_and_its_rest_told(tmp_path):
    found = read(png(tmp_path, invokeai_metadata=json.dumps(INVOKE)), FORMS)
    assert found.written_by == "InvokeAI"
    assert found.settings == {
        "prompt": "a fox",
        "negative_prompt": "blur",
        "seed": 7,
        "num_inference_steps": 30,
        "guidance_scale": 6.5,
        "width": 128,
        "height": 128,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
    }
    assert any("juggernaut" in told for told in found.left_out)
    assert any("loras" in told for told in found.left_out)


def test_older_invokeai_as_well(tmp_path):
    old = {"model": "x", "image": {"prompt": "a fox", "steps": 9, "seed": 3, "cfg_scale": 5, "sampler": "k_euler_a"}}
    found = read(png(tmp_path, sd__metadata=json.dumps(old)), FORMS)
    assert found.settings["sampler"] == "euler_a"
    assert found.settings["num_inference_steps"] == 9


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"steps": 3}', "[" * 100_000])
def test_other_json_is_not_invokeais(text):
    assert invokeai.parse(text) is None


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_no_picture_is_refused(tmp_path, data):
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(InvalidRequest, match=r"^file: no readable picture given; legal: a PNG"):
        read(path, FORMS)


def test_a_picture_without_settings_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="file: a picture that does not say how it was made"):
        read(png(tmp_path, Comment="hello"), FORMS)


def test_a_receipt_may_name_no_file(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    found = read(png(tmp_path, triptych=json.dumps({**RECEIPT, "init_image": str(secret)})), FORMS)
    assert "init_image" not in found.settings


@pytest.mark.parametrize(
    ("name", "value", "fitted"),
    [
        ("height", 100, 96),
        ("width", 10_000, 256),
        ("sampler", "DPMSolverMultistepScheduler++", None),
        ("sampler", "Euler a", "euler_a"),
        ("num_inference_steps", 500, None),
        ("guidance_scale", "seven", None),
        ("guidance_scale", float("nan"), None),
        ("seed", -1, None),
        ("seed", 2**63, None),
        ("height", True, None),
        ("output_format", "gif", None),
        ("negative_prompt", 7, None),
        ("prior_guidance_scale", 4, None),
    ],
)
def test_what_does_not_fit_is_told(name, value, fitted):
    settings, told = fit(FORMS["sdxl"], {name: value})
    assert settings.get(name) == fitted
    assert [line.split(":")[0] for line in told] == ([] if fitted == "euler_a" else [name])


def test_a_schedule_hangs_on_its_sampler():
    settings, told = fit(FORMS["sdxl"], {"schedule": "karras", "sampler": "euler_a", "num_inference_steps": 20})
    assert settings == {"sampler": "euler_a", "num_inference_steps": 20}
    assert len(told) == 1
    assert told[0].startswith("schedule: 'karras' given; legal: default, ")


def test_steps_end_where_the_samplers_do():
    settings, told = fit(FORMS["sdxl"], {"num_inference_steps": 80, "sampler": "lcm"})
    assert settings == {"sampler": "lcm"}
    assert told == ["num_inference_steps: 80 given; legal: 1 … 50"]


@pytest.mark.parametrize(
    ("value", "words"), [(7.300000190734863, "7.3"), (7.0, "7"), (0.1, "0.1"), (7.123457, "7.123457")]
)
def test_floats_are_shown_as_people_wrote_them(value, words):
    assert plain(value) == words


def test_numbers_that_32_bits_cannot_hold_stay():
    assert short(1e300) == 1e300
    assert short(float("inf")) == float("inf")


@pytest.mark.parametrize("text", ["a" * 90_000, "<lora:" * 15_000, "(a:" * 30_000, 'a: "' * 20_000, "a:1," * 20_000])
def test_no_text_takes_long(text):
    begun = time.monotonic()
    a1111.parse(f"{text}\nSteps: 3, {text}")
    assert time.monotonic() - begun < 5


def test_a_part_of_a_step_is_told():
    settings, told = fit(FORMS["sdxl"], {"num_inference_steps": 2.5})
    assert (settings, told) == ({}, ["num_inference_steps: 2.5 given; legal: a whole number below 2^31"])
