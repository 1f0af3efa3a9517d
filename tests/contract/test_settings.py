"""Every input is checked once, and an error names the field, what was given and what is legal."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych_contract.errors import InvalidRequest
from triptych_contract.parameters import Picture
from triptych_contract.sdxl.settings import SdxlSettings
from triptych_contract.settings import MAX_PROMPT_BYTES

from ..cards import REFINER, card

MODEL = card()
REFINED = card(refiner=REFINER, adapter_rank=8, controls=("edges", "depth"))
PICTURE = Picture("0" * 64, 130, 97)
SMALL = Picture("0" * 64, 64, 64)


def parse(**given):
    return SdxlSettings.parse({"prompt": b"a fox", **given}, MODEL)


def test_defaults_are_the_models():
    settings = parse()
    assert (settings.height, settings.width) == (MODEL.default_height, MODEL.default_width)
    assert settings.num_inference_steps == MODEL.default_num_inference_steps
    assert settings.guidance_scale == MODEL.default_guidance_scale
    assert (settings.sampler, settings.schedule) == ("euler", "default")
    assert settings.negative_prompt is None
    assert 0 <= settings.seed < 2**32


@pytest.mark.parametrize("name", [b"dpmpp_2m", b"DPM++ 2M", b"dpm++ 2m", b"DPMSolverMultistepScheduler"])
def test_a_sampler_may_be_asked_for_by_any_of_its_names(name):
    assert parse(sampler=name).sampler == "dpmpp_2m"


def test_a_class_that_means_several_samplers_names_none():
    two = dict.fromkeys(("dpmpp_2m", "dpmpp_3m"), MODEL.samplers["dpmpp_2m"])
    with pytest.raises(InvalidRequest, match="legal: dpmpp_2m, dpmpp_3m"):
        SdxlSettings.parse({"prompt": b"a fox", "sampler": b"DPMSolverMultistepScheduler"}, card(samplers=two))


def test_seed_zero_is_a_seed():
    assert parse(seed=0).seed == 0


def test_missing_and_empty_negative_prompts_differ():
    assert parse(negative_prompt=b"").negative_prompt == ""
    assert parse().negative_prompt is None


@pytest.mark.parametrize(
    ("given_inputs", "message"),
    [
        ({"prompt": b""}, "prompt: an empty text given; legal: a text that is not blank"),
        ({"prompt": b" \n\t"}, "prompt: a blank text given"),
        ({"prompt": None}, "prompt: nothing given"),
        ({"prompt": b"x" * 5_000_000}, f"prompt: 5000000 bytes given; legal: at most {MAX_PROMPT_BYTES} bytes"),
        ({"prompt": b"\xff\xfe"}, "prompt: byte 0xff at 0 given; legal: UTF-8"),
        ({"prompt": b"a\0b"}, "prompt: control character U+0000 at 1"),
        ({"prompt": b"\x1b[31mred"}, "prompt: control character U+001B at 0"),
        ({"negative_prompt": b"\xc3("}, "negative_prompt: byte 0xc3 at 0"),
        ({"seed": -1}, f"seed: -1 given; legal: 0 … {2**63 - 1}"),
        ({"num_inference_steps": 0}, "num_inference_steps: 0 given; legal: 1 … 100"),
        ({"num_inference_steps": 101}, "num_inference_steps: 101 given; legal: 1 … 100"),
        ({"num_inference_steps": 2**31 - 1}, "num_inference_steps: 2147483647 given"),
        ({"guidance_scale": float("nan")}, "guidance_scale: nan given; legal: 0 … 50"),
        ({"guidance_scale": float("inf")}, "guidance_scale: inf given"),
        ({"guidance_scale": -0.5}, "guidance_scale: -0.5 given"),
        ({"height": 100}, "height: 100 given; legal: multiples of 32 from 32 to 256, the nearest 96 or 128"),
        ({"width": 0}, "width: 0 given; legal: multiples of 32 from 32 to 256, the nearest 32"),
        ({"width": -8}, "width: -8 given"),
        ({"height": 100_000}, "height: 100000 given; legal: multiples of 32 from 32 to 256, the nearest 256"),
        ({"sampler": b"__import__('os')"}, "legal: dpmpp_2m, euler, lcm, unipc"),
        ({"sampler": b"dpmpp_2m", "schedule": b"cosine"}, "schedule: 'cosine' given; legal: default, karras"),
        ({"output_format": b"../../etc"}, "output_format: '../../etc' given; legal: png, jpeg, webp"),
        ({"deadline_ms": 0}, "deadline_ms: 0 given; legal: 1 …"),
        ({"tenant": b"t" * 129}, "tenant: 129 bytes given"),
        ({"sampler": b"lcm", "num_inference_steps": 51}, "num_inference_steps: 51 given; legal: 1 … 50"),
        ({"guidance_rescale": 1.5}, "guidance_rescale: 1.5 given; legal: 0 … 1"),
        ({"guidance_end": -0.1}, "guidance_end: -0.1 given; legal: 0 … 1"),
        ({"clip_skip": 3}, "clip_skip: 3 given; legal: 0 … 2"),
        ({"original_size": (0, 9)}, "original_size: 0 given; legal: 1 … 65536"),
        ({"crops_coords_top_left": (0, -1)}, "crops_coords_top_left: -1 given; legal: 0 … 65536"),
        ({"strength": 0.5}, "strength: without init_image given; legal: only together with init_image"),
        ({"mask": PICTURE}, "mask: without init_image given"),
        ({"init_image": PICTURE, "strength": 1.1}, "strength: 1.1 given; legal: 0 … 1"),
        ({"init_image": PICTURE, "strength": 0.01}, "strength: 0.01 of 20 steps given; legal: at least 0.05"),
        ({"init_image": PICTURE, "mask": PICTURE, "sampler": b"unipc"}, "mask: with sampler unipc given"),
        ({"init_image": PICTURE, "mask_blur": 4}, "mask_blur: without mask or extend given; legal: only together with"),
        ({"init_image": PICTURE, "padding_mask_crop": 4}, "padding_mask_crop: without mask or extend given"),
        ({"mask_blur": 4}, "mask_blur: without init_image given"),
        ({"extend": (8, 8, 8, 8)}, "extend: without init_image given"),
        ({"init_image": PICTURE, "mask": PICTURE, "mask_blur": 257}, "mask_blur: 257 given; legal: 0 … 256"),
        (
            {"init_image": PICTURE, "mask": PICTURE, "padding_mask_crop": -1},
            "padding_mask_crop: -1 given; legal: 0 … 4096",
        ),
        (
            {"init_image": PICTURE, "mask": SMALL, "padding_mask_crop": 4},
            "mask: 64×64 pixels given; legal: with padding_mask_crop the picture's size, 97×130",
        ),
        (
            {"init_image": PICTURE, "mask": SMALL, "extend": (8, 0, 0, 0)},
            "mask: 64×64 pixels given; legal: with extend the picture's size, 97×130",
        ),
        ({"init_image": PICTURE, "extend": (0, 0, 0, 0)}, "extend: 0 at every edge given; legal: more at one of them"),
        ({"init_image": PICTURE, "extend": (0, 0, 0, 4097)}, "extend: 4097 given; legal: 0 … 4096"),
        (
            {"init_image": PICTURE, "extend": (8, 8)},
            "extend: (8, 8) given; legal: four whole numbers, left, top, right and",
        ),
        ({"init_image": PICTURE, "extend": (8, 0, 0, 0), "sampler": b"unipc"}, "extend: with sampler unipc given"),
        (
            {"init_image": Picture("0" * 64, 7_900, 7_900), "extend": (4_096, 4_096, 0, 0)},
            "extend: 11996×11996 pixels in all given; legal: at most 64000000 pixels",
        ),
        ({"init_image": Picture("0" * 64, 20, 128)}, "height: 0 given; legal: multiples of 32"),
        ({"denoising_end": 0.8}, "denoising_end: 0.8 given; legal: nothing: this model was exported without a refiner"),
        ({"lora": "ink:0.5, fog"}, "lora: ink, fog given; legal: nothing: this model was exported without --adapters"),
        (
            {"control": "edges", "control_images": [PICTURE]},
            "control: edges given; legal: nothing: this model was exported",
        ),
        ({"aesthetic_score": 6.0}, "aesthetic_score: without denoising_end given"),
        ({"colour": b"red"}, "colour: an unknown input given; legal: prompt, "),
    ],
)
def test_bad_input_is_named(given_inputs, message):
    with pytest.raises(InvalidRequest) as error:
        parse(**given_inputs)
    assert message in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("given_inputs", "message"),
    [
        ({"denoising_end": 1.0}, "denoising_end: 1 given; legal: over 0, under 1"),
        ({"denoising_end": float("nan")}, "denoising_end: nan given"),
        ({"denoising_end": 0.8, "aesthetic_score": 11.0}, "aesthetic_score: 11 given; legal: 0 … 10"),
        ({"denoising_end": 0.8, "init_image": PICTURE, "mask": PICTURE}, "denoising_end: with mask given"),
        (
            {"denoising_end": 0.8, "init_image": PICTURE, "extend": (0, 0, 0, 8)},
            "denoising_end: with extend given; legal: only without extend",
        ),
        ({"denoising_end": 0.8, "height": 96}, "height: 96 given; legal: multiples of 64 from 64 to 256"),
    ],
)
def test_bad_input_of_the_refiner_is_named(given_inputs, message):
    with pytest.raises(InvalidRequest) as error:
        SdxlSettings.parse({"prompt": b"a fox", **given_inputs}, REFINED)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("given_inputs", "message"),
    [
        (
            {"control": "canny", "control_images": [PICTURE]},
            "control: canny, which this model does not have given; legal: edges, depth",
        ),
        ({"control": "edges"}, "control: without control_images given; legal: only together with control_images"),
        ({"control_images": [PICTURE]}, "control_images: without control given"),
        ({"control": "edges, depth", "control_images": [PICTURE]}, "control: image 1 of 1 given; legal: 0 … 0"),
        ({"control": "edges", "control_images": [PICTURE] * 2}, "control_images: 2 pictures for 1 given"),
        ({"control": "[]", "control_images": [PICTURE]}, "control: an empty list given"),
        ({"control": "edges", "control_images": [PICTURE] * 5}, "control_images: 5 pictures given; legal: 1 … 4"),
    ],
)
def test_bad_controls_are_named(given_inputs, message):
    with pytest.raises(InvalidRequest) as error:
        SdxlSettings.parse({"prompt": b"a fox", **given_inputs}, REFINED)
    assert message in str(error.value)


def test_two_controls_may_follow_one_picture():
    both = [{"name": "edges"}, {"name": "depth", "image": 0, "scale": 0.5}]
    settings = SdxlSettings.parse({"prompt": "a fox", "control": both, "control_images": [PICTURE]}, REFINED)
    assert [one.image for one in settings.control] == [0, 0]


def test_the_defaults_of_a_picture_are_its_size_rounded_down_and_diffusers_strengths():
    settings = parse(init_image=PICTURE)
    assert (settings.height, settings.width, settings.strength) == (128, 96, 0.3)
    assert parse(init_image=PICTURE, mask=PICTURE).strength == 0.9999
    assert settings.original_size == settings.target_size == (128, 96)


def test_an_extended_picture_has_its_own_size_and_a_part_of_one_is_painted_at_the_models():
    extended = parse(init_image=PICTURE, extend=(0, 30, 32, 0))
    assert (extended.height, extended.width, extended.strength, extended.mask_blur) == (160, 128, 0.9999, 0)
    part = parse(init_image=PICTURE, mask=PICTURE, padding_mask_crop=8)
    assert (part.height, part.width) == (MODEL.default_height, MODEL.default_width)
    assert parse(init_image=PICTURE).mask_blur is None


def test_a_model_that_reads_masks_takes_them_with_every_sampler():
    given = {"prompt": b"a fox", "init_image": PICTURE, "mask": PICTURE, "sampler": b"unipc"}
    assert SdxlSettings.parse(given, card(inpainting=True)).sampler == "unipc"


def test_settings_survive_the_way_to_the_next_model():
    full = {
        "seed": 2**63 - 1,
        "negative_prompt": b"",
        "init_image": PICTURE,
        "strength": 0.7,
        "denoising_end": 0.8,
        "original_size": (1, 2),
        "tenant": b"a",
        "height": 128,
        "width": 128,
        "lora": [{"name": "ink", "scale": 0.5, "sha256": "0"}, {"name": "fog"}],
        "control": "edges:0.5:0-0.75, edges",
        "control_images": [PICTURE, PICTURE],
    }
    settings = SdxlSettings.parse({"prompt": b"a fox", **full}, REFINED)
    assert SdxlSettings.parse(json.loads(json.dumps(settings.to_json())), REFINED) == settings


@given(st.binary(max_size=200))
def test_any_bytes_are_a_prompt_or_a_named_error(data):
    try:
        assert parse(prompt=data).prompt.encode() == data
    except InvalidRequest as error:
        assert error.field == "prompt"


@given(st.integers(-(2**31), 2**31 - 1))
def test_any_height_is_taken_or_answered_with_legal_ones(height):
    try:
        assert parse(height=height).height == height
    except InvalidRequest as error:
        nearest = str(error).rsplit("nearest ", 1)[1].split(" or ")
        assert all(parse(height=int(value)).height for value in nearest)
