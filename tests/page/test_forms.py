"""The page's forms and checks: what the server would refuse is refused here, in the server's words."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from PIL import Image

from triptych import InvalidRequest, ServerError
from triptych_contract.families import FAMILIES
from triptych_contract.family import Variant
from triptych_contract.parameters import Flag, parameter
from triptych_contract.sdxl.settings import SdxlSettings
from triptych_contract.settings import parameters
from triptych_demo import demo_build
from triptych_page import fields as page_fields
from triptych_page import forms as page_forms
from triptych_page.fitting import fit
from triptych_page.forms import forms_of
from triptych_page.seeds import MAX_SEED, check_count, draw_seed, parse_seed, seeds_from
from triptych_page.sizes import nearest_side, presets
from triptych_page.weights import picked
from triptych_serving.manifest import Manifest

from ..serving.drawn import file, picture
from .described import all_forms, described, sdxl_card

FORMS = all_forms()
SDXL, REFINED, STABLE = FORMS["sdxl"], FORMS["sdxl+refiner"], FORMS["stable_cascade"]
START = file(picture())


def problems(form, **values):
    _, found = form.check({"prompt": "a fox", **values})
    return [str(problem) for problem in found]


def test_there_is_a_form_for_each_way_to_ask():
    assert {key: form.title for key, form in FORMS.items()} == {
        "sdxl": "SDXL",
        "sdxl+refiner": "SDXL + refiner",
        "stable_cascade": "Stable Cascade",
    }
    assert list(forms_of(described())) == ["sdxl"]
    assert forms_of(described()) == forms_of(described())  # or a server that comes back would reset every page
    assert forms_of({"other": {"family": "flux", "model": {}}}) == {}


def test_ranges_and_defaults_are_the_servers():
    card = sdxl_card()
    assert SDXL.parameters["num_inference_steps"].default == card["default_num_inference_steps"]
    assert SDXL.parameters["clip_skip"].kind.high == card["max_clip_skip"]
    assert set(SDXL.parameters["sampler"].kind.names) == set(card["samplers"])
    assert STABLE.parameters["prior_num_inference_steps"].kind.high == 60
    assert STABLE.parameters["num_inference_steps"].kind.high == 40
    assert REFINED.parameters["denoising_end"].default == 0.8
    assert (SDXL.sides.step, REFINED.sides.step) == (card["size_multiple"], 64)


def test_each_form_has_its_own_inputs_only():
    assert "prior_num_inference_steps" not in SDXL.parameters
    assert "denoising_end" in REFINED.parameters.keys() - SDXL.parameters.keys()
    assert not {"sampler", "init_image", "guidance_scale"} & STABLE.parameters.keys()
    assert not {"tenant", "deadline_ms", "use_cache"} & SDXL.parameters.keys()


def test_a_card_of_another_version_is_the_servers_error():
    models = described()
    del models["sdxl"]["model"]["min_size"]
    with pytest.raises(ServerError, match="not this version's"):
        forms_of(models)


def test_presets_are_legal_and_begin_with_the_models_own():
    sides = range(512, 2049, 64)
    found = presets(1024, 1024, sides)
    assert found[0] == (1024, 1024)
    assert all(wide in sides and high in sides for wide, high in found)
    assert len(found) == len(set(found)) > 4
    assert all(0.8 < wide * high / 1024**2 < 1.25 for wide, high in found)


def test_the_nearest_side_of_two_is_the_smaller():
    assert nearest_side(48, (32, 64)) == 32
    assert nearest_side(10_000, (32, 64)) == 64


@pytest.mark.parametrize(
    ("text", "seed"),
    [("", None), (None, None), (" 7 ", 7), ("0", 0), (str(MAX_SEED), MAX_SEED), (str(2**53 + 1), 2**53 + 1)],
)
def test_seeds_keep_all_their_digits(text, seed):
    assert parse_seed(text) == seed


@pytest.mark.parametrize("text", ["-1", "1.5", str(2**63), "1e5", "seven", "٣", "1_000", "9" * 5000])
def test_what_is_no_seed_is_refused(text):
    with pytest.raises(InvalidRequest, match=r"^seed: '.* given; legal: 0 … 9223372036854775807"):
        parse_seed(text)


def test_drawn_seeds_are_legal_and_differ():
    drawn = {draw_seed() for _ in range(20)}
    assert len(drawn) > 15
    assert all(0 <= seed < 2**32 for seed in drawn)


def test_seeds_do_not_run_over_their_end():
    assert seeds_from(3, 3) == [3, 4, 5]
    assert seeds_from(MAX_SEED, 1) == [MAX_SEED]
    with pytest.raises(InvalidRequest, match=f"seed: {MAX_SEED} for 2 pictures given; legal: 0 … {MAX_SEED - 1}"):
        seeds_from(MAX_SEED, 2)


def test_an_empty_form_sends_the_prompt_alone():
    values = {"prompt": "a fox", "negative_prompt": "", "seed": "", "height": None, "num_inference_steps": None}
    assert SDXL.check(values) == ({"prompt": "a fox"}, [])


def test_a_full_form_is_a_request_that_the_server_takes():
    values = {
        "prompt": "a fox",
        "negative_prompt": "blur",
        "seed": str(2**63 - 1),
        "num_inference_steps": 12.0,
        "guidance_scale": 7,
        "guidance_rescale": 0.5,
        "guidance_end": 0.9,
        "clip_skip": 1,
        "height": 128,
        "width": 160,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "output_format": "webp",
        "crops_coords_top_left": "0, 64",
        "prior_guidance_scale": 3,  # another model's, left over from a switch
        "strength": 0.5,  # means nothing without a picture
    }
    request, found = SDXL.check(values)
    assert found == []
    assert request["seed"] == 2**63 - 1
    assert isinstance(request["num_inference_steps"], int)
    assert request["crops_coords_top_left"] == (0, 64)
    assert not {"prior_guidance_scale", "strength"} & set(request)
    sent = {name: value.encode() if isinstance(value, str) else value for name, value in request.items()}
    assert SdxlSettings.parse(sent, Manifest.load(demo_build()).model).width == 160


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": ""}, "prompt: an empty text given; legal: a text that is not blank"),
        ({"prompt": " \n"}, "prompt: a blank text given; legal: a text that is not blank"),
        ({"prompt": "a\0b"}, "prompt: control character U+0000 at 1 given; legal: text, tabs and line ends"),
        ({"prompt": "é" * 9000}, "prompt: 18000 bytes given; legal: at most 16384 bytes of UTF-8"),
        ({"num_inference_steps": 101}, "num_inference_steps: 101 given; legal: 1 … 100"),
        ({"guidance_scale": 51}, "guidance_scale: 51 given; legal: 0 … 50"),
        ({"clip_skip": 3}, "clip_skip: 3 given; legal: 0 … 2"),
    ],
)
def test_what_is_wrong_is_told_in_the_servers_words(values, message):
    assert problems(SDXL, **values) == [message]
    sent = {name: value.encode() if isinstance(value, str) else value for name, value in values.items()}
    with pytest.raises(InvalidRequest) as theirs:
        SdxlSettings.parse({"prompt": b"a fox", **sent}, Manifest.load(demo_build()).model)
    assert str(theirs.value) == message


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"height": 100}, "height"),
        ({"width": 10**9}, "width"),
        ({"sampler": "best"}, "sampler"),
        ({"sampler": "euler_a", "schedule": "karras"}, "schedule"),
        ({"output_format": "gif"}, "output_format"),
        ({"num_inference_steps": 2.5}, "num_inference_steps"),
        ({"num_inference_steps": True}, "num_inference_steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": "7"}, "guidance_scale"),
        ({"sampler": "lcm", "num_inference_steps": 51}, "num_inference_steps"),
        ({"original_size": "128"}, "original_size"),
        ({"original_size": "0, 128"}, "original_size"),
        ({"mask": START}, "mask"),
        ({"mask": START, "init_image": START, "sampler": "unipc"}, "mask"),
        ({"init_image": START, "strength": 0.01, "num_inference_steps": 20}, "strength"),
        ({"init_image": START, "num_inference_steps": 2}, "strength"),
        ({"init_image": START[:20]}, "init_image"),
        ({"init_image": b"no picture"}, "init_image"),
        ({"init_image": "/etc/hostname"}, "init_image"),
    ],
)
def test_every_problem_names_its_field(values, field):
    found = problems(SDXL, **values)
    assert [problem.split(":")[0] for problem in found] == [field]


def test_all_problems_are_told_at_once():
    assert len(problems(SDXL, prompt="", seed="x", height=1, guidance_scale=99)) == 4


def test_the_refiner_takes_over_strictly_inside():
    assert problems(REFINED, denoising_end=1) == ["denoising_end: 1 given; legal: over 0, under 1"]
    assert problems(REFINED, denoising_end=0.8) == []
    assert problems(REFINED, mask=START, init_image=START, denoising_end=0.8, height=128, width=128) == [
        "denoising_end: with mask given; legal: only without mask"
    ]


def test_cascade_names_the_nearest_sizes():
    (problem,) = problems(STABLE, width=200)
    assert problem.startswith("width: 200 given; legal: ")
    assert "the nearest" in problem


@pytest.mark.parametrize(("n", "legal"), [(1, True), (16, True), (0, False), (17, False), (1.5, False), ("2", False)])
def test_the_count_is_checked(n, legal):
    if legal:
        assert check_count(n, 3) == n
    else:
        with pytest.raises(InvalidRequest, match=r"^n: "):
            check_count(n, 3)


def test_so_many_pictures_need_as_many_seeds():
    with pytest.raises(InvalidRequest, match=f"seed: {MAX_SEED} for 2"):
        check_count(2, MAX_SEED)


def test_a_request_has_the_bytes_of_its_pictures_and_their_own_size_where_none_is_asked():
    exif = Image.Exif()
    exif[page_forms.ORIENTATION] = 6
    turned = file(picture(size=(100, 70)), "JPEG", exif=exif)
    values = {"prompt": "a fox", "init_image": turned, "height": None, "width": None, "strength": 0.5}
    assert SDXL.check(values) == ({"prompt": "a fox", "init_image": turned, "strength": 0.5}, [])
    reading = SDXL.read(values)
    assert (reading.values["height"], reading.values["width"]) == (96, 64)


def test_scores_without_the_refiner_are_left_out():
    assert REFINED.check({"prompt": "a fox", "denoising_end": None, "aesthetic_score": 6.0}) == (
        {"prompt": "a fox"},
        [],
    )


def test_the_schedules_and_the_steps_are_those_of_the_sampler():
    reading = SDXL.read({"sampler": "lcm", "num_inference_steps": 80})
    assert reading.kind("num_inference_steps").high == 50
    assert "karras" not in dict(page_fields.schedules(SDXL, "euler_a", "karras")["choices"])
    assert page_fields.schedules(SDXL, "euler_a", "karras")["value"] == "default"
    assert page_fields.schedules(SDXL, "euler", "karras")["value"] == "karras"
    assert page_fields.schedules(STABLE, "euler", "karras")["visible"] is False


def updates(form, **settings):
    import gradio as gr

    with gr.Blocks():
        fields = page_fields.Fields()
        fields.prompts()
        fields.settings()
    shown = fields.shown(form, settings)
    return {name: shown[component] for name, component in fields.by_name.items()}


def test_numbers_are_sliders_within_the_models_limits_and_let_any_number_through():
    shown = updates(SDXL, guidance_scale=7.35)
    assert [shown["num_inference_steps"][key] for key in ("minimum", "maximum", "step", "value")] == [1, 100, 1, 20]
    assert [shown["guidance_scale"][key] for key in ("minimum", "maximum", "value")] == [0, 50, 7.35]
    assert page_fields.Slider(0, 1).preprocess(500) == 500
    assert page_fields.Slider(0, 1).get_block_name() == "slider"
    assert page_fields.steps(SDXL, "lcm")["maximum"] == 50
    assert "minimum" not in shown["width"]


def test_a_slider_stands_where_the_server_would_put_it():
    assert updates(SDXL)["strength"]["value"] == 0.3
    assert updates(REFINED)["aesthetic_score"]["value"] == 6.0
    assert page_fields.masked(SDXL, 0.3, mask=True) == 0.9999
    assert page_fields.masked(SDXL, 0.9999, mask=False) == 0.3
    for kept in ((0.5, True), (0.5, False), (0.3, False)):
        assert page_fields.masked(SDXL, kept[0], mask=kept[1])["__type__"] == "update"


def test_a_form_that_nobody_has_touched_starts_from_a_picture_as_it_is():
    for form in (SDXL, REFINED):
        # A slider that is told nothing stands at its lower end.
        shown = {name: (update.get("value"), update.get("minimum")) for name, update in updates(form).items()}
        values = {name: low if value is None else value for name, (value, low) in shown.items()}
        given = {
            **values,
            "prompt": "a fox",
            "height": 128,
            "width": 128,
            "num_inference_steps": 20,
            "init_image": START,
        }
        assert form.check(given)[1] == []


def test_adapters_are_offered_where_the_server_has_a_folder_of_them():
    models = described()
    models["sdxl"]["model"]["adapter_rank"] = 64
    plain = forms_of(models)["sdxl"]
    assert not updates(plain)["lora"]["visible"]
    models["sdxl"]["adapters"] = {"ink": {"trigger_words": "ink wash"}, "fog": {"trigger_words": None}}
    form = forms_of(models)["sdxl"]
    shown = updates(form, lora="ink:0.5, gone")
    assert shown["lora"]["visible"]
    assert shown["lora"]["names"] == {"fog": "", "ink": "Trigger words: ink wash"}
    assert shown["lora"]["value"] == [{"name": "ink", "scale": 0.5}, {"name": "gone", "scale": 1.0}]
    assert form == plain  # files come and go without a new form
    assert form.check({"prompt": "a fox", "lora": []}) == ({"prompt": "a fox"}, [])


def controlled():
    """The demo's form, as if its model had controls."""
    models = described()
    models["sdxl"]["model"]["controls"] = ["edges", "depth"]
    return forms_of(models)["sdxl"]


EDGES, DEPTH = ({"name": name, "scale": 0.5, "start": 0, "end": 1} for name in ("edges", "depth"))


def test_controls_are_those_of_the_model_and_follow_pictures_in_order_or_the_only_one():
    form = controlled()
    assert form.listed("control") == {"edges": "", "depth": ""}
    assert "control" not in SDXL.parameters
    for files, images in (([START] * 2, [0, 1]), ([START], [0, 0])):
        checked, found = form.check({"prompt": "a fox", "control": [EDGES, DEPTH], "control_images": files})
        assert not found
        assert [one.image for one in checked["control"]] == images
        assert checked["control_images"] == files


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"control": [EDGES]}, "control: without control_images given; legal: only together with control_images"),
        ({"control_images": [START]}, "control_images: without control given; legal: only together with control"),
        ({"control": [EDGES], "control_images": [START] * 2}, "control_images: 2 pictures for 1 given"),
        ({"control": [EDGES], "control_images": [("a.png", None)] * 2}, "control_images: 2 pictures for 1 given"),
        ({"control": [EDGES], "control_images": [b"no picture"]}, "control_images: no readable picture given"),
        ({"control": "fog", "control_images": [START]}, "control: fog, which this model does not have given"),
        ({"control": [7], "control_images": [START]}, "control: 7 given"),
    ],
)
def test_what_does_not_fit_together_is_told(values, words):
    assert any(problem.startswith(words) for problem in problems(controlled(), **values))


def test_controls_of_a_picture_come_back_without_their_pictures():
    asked = [{**DEPTH, "image": 1, "end": 0.5}, {**EDGES, "image": 0}]
    for given in ({"control": asked}, {"control": asked, "control_images": [{"sha256": "ab"}, {"sha256": "cd"}]}):
        fitted, left_out = fit(controlled(), given)
        assert [one.name for one in fitted["control"]] == ["depth", "edges"]
        assert [words for words in left_out if words.startswith("control:")] == []
    shown = picked(controlled().parameters["control"].kind, "control", asked)
    assert shown == [EDGES, {**DEPTH, "end": 0.5}]  # in the order of the pictures
    fitted, left_out = fit(controlled(), {"control": [{**EDGES, "name": "pose", "image": 0}]})
    assert left_out == ["control: pose:0.5, which this server does not have"]


def test_what_the_contract_declares_anew_has_a_field_and_is_sent(monkeypatch):
    import gradio as gr

    @dataclass(frozen=True)
    class Tiled(SdxlSettings):
        tiling: bool = parameter(Flag(), "Let the edges meet.", default=False, group="sampling")

    family = replace(
        FAMILIES["sdxl"],
        load_settings=lambda: Tiled,
        variants=lambda _: (Variant("", "SDXL", frozenset(parameters(Tiled))),),
    )
    every = page_forms.every({"sdxl": family})
    monkeypatch.setattr(page_fields, "EVERY", every)
    form = replace(SDXL, family=family, variant=family.variants(None)[0])
    with gr.Blocks():
        fields = page_fields.Fields()
        fields.prompts()
        fields.settings()
    assert fields.by_name["tiling"].label == "Tiling"
    assert fields.by_name["tiling"].info == "Let the edges meet."
    assert fields.by_name.keys() == form.parameters.keys()
    assert form.check({"prompt": "a fox", "tiling": True}) == ({"prompt": "a fox", "tiling": True}, [])
