"""Every input is checked once, and an error names the field, what was given and what is legal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych_serving.errors import InvalidRequest
from triptych_serving.settings import MAX_PROMPT_BYTES, Settings

from ..models import card

MODEL = card()


def parse(**given):
    return Settings.parse({"prompt": b"a fox", **given}, MODEL)


def test_defaults_are_the_models():
    settings = parse()
    assert (settings.height, settings.width) == (MODEL.default_height, MODEL.default_width)
    assert settings.num_inference_steps == MODEL.default_num_inference_steps
    assert settings.guidance_scale == MODEL.default_guidance_scale
    assert (settings.sampler, settings.schedule) == ("euler", "default")
    assert settings.negative_prompt is None
    assert 0 <= settings.seed < 2**32


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
        ({"sampler": b"__import__('os')"}, "legal: dpmpp_2m, euler"),
        ({"sampler": b"dpmpp_2m", "schedule": b"cosine"}, "schedule: 'cosine' given; legal: default, karras"),
        ({"output_format": b"../../etc"}, "output_format: '../../etc' given; legal: png, jpeg, webp"),
        ({"deadline_ms": 0}, "deadline_ms: 0 given; legal: 1 …"),
        ({"tenant": b"t" * 129}, "tenant: 129 bytes given"),
        ({"colour": b"red"}, "colour: an unknown input given; legal: prompt, "),
    ],
)
def test_bad_input_is_named(given_inputs, message):
    with pytest.raises(InvalidRequest) as error:
        parse(**given_inputs)
    assert message in str(error.value)
    assert len(str(error.value)) < 400


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
