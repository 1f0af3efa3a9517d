"""A1111's HTTP on the real server, as `webuiapi` from PyPI asks for it, unmodified."""

from __future__ import annotations

import base64
import io
import json
import re
import threading

import httpx2
import numpy as np
import pytest
import webuiapi
from PIL import Image

from triptych_contract.families import DEFAULT, FAMILIES

from .. import fronts, plain
from ..fronts import until

SMALL = {"prompt": "a flat icon of a penguin", "width": 128, "height": 128, "steps": 4, "seed": 3}


@pytest.fixture(scope="module")
def front(demo, tmp_path_factory):
    with fronts.running(tmp_path_factory.mktemp("front"), demo.grpc) as front:
        yield front


@pytest.fixture
def api(front):
    return webuiapi.WebUIApi(host="127.0.0.1", port=front.port, sampler="Euler", steps=4)


@pytest.fixture
def http(front):
    with httpx2.Client(base_url=f"{front.address}/sdapi/v1", timeout=60) as client:
        yield client


def half(colours):
    """Left and right half of a picture."""
    picture = Image.new("RGB", (128, 128), colours[0])
    picture.paste(colours[1], (64, 0, 128, 128))
    return picture


def test_a_picture_by_its_client_is_the_one_of_our_own_names(api, url):
    result = api.txt2img(**{**SMALL, "sampler_name": "DPM++ 2M", "scheduler": "Karras", "cfg_scale": 5})
    asked = {"num_inference_steps": 4, "sampler": "dpmpp_2m", "schedule": "karras", "guidance_scale": 5.0}
    asked["prompt_syntax"] = "a1111"
    ours = plain.grpc(url, prompt=SMALL["prompt"], negative_prompt="", width=128, height=128, seed=3, **asked)
    assert np.array_equal(np.asarray(result.image), np.asarray(Image.open(io.BytesIO(ours["image"]))))
    assert result.info["infotexts"][0] == Image.open(io.BytesIO(ours["image"])).info["parameters"]
    assert result.info["triptych"][0]["sampler"] == "dpmpp_2m"
    assert result.parameters["sampler_name"] == "DPM++ 2M"


def test_older_names_have_the_schedule_at_the_end(http):
    def drawn(**names):
        return http.post("/txt2img", json={**SMALL, **names}).json()["images"]

    assert drawn(sampler_name="DPM++ 2M Karras") == drawn(sampler_name="dpmpp_2m", scheduler="karras")
    assert drawn(sampler_name="Euler") == drawn(sampler_name="Euler", scheduler="Automatic") == drawn()


def test_batches_and_iterations_are_pictures_of_seeds_one_after_the_other(api):
    result = api.txt2img(**SMALL, batch_size=2, n_iter=2)
    assert (len(result.images), result.info["all_seeds"]) == (4, [3, 4, 5, 6])


def test_every_model_can_be_chosen(api):
    assert api.util_get_model_names() == sorted(FAMILIES)
    other = next(name for name in FAMILIES if name != DEFAULT.name)
    result = api.txt2img(
        prompt="a penguin", width=256, height=256, steps=2, seed=1, sampler_name="", scheduler="",
        override_settings={"sd_model_checkpoint": other},
    )  # fmt: skip
    assert result.info["sd_model_name"] == other


def test_img2img_begins_with_a_picture_and_paints_where_a_mask_is_white(api):
    green, right = half([(0, 200, 0)] * 2), half(["black", "white"])
    masked = {"mask_blur": 0, "inpainting_fill": 1, "inpaint_full_res": False}
    asked = {**SMALL, "steps": 10, "denoising_strength": 0.9, "prompt": "a red apple"}
    changed = []
    for invert in (0, 1):
        result = api.img2img(images=[green], mask_image=right, inpainting_mask_invert=invert, **masked, **asked)
        difference = np.abs(np.asarray(result.image, float) - np.array([0, 200, 0])).mean((0, 2))
        changed.append(difference[80:].mean() > difference[:48].mean())
    assert changed == [True, False]
    assert api.img2img(images=[green], **asked).image.size == (128, 128)


def test_only_the_masks_surroundings_are_painted_and_laid_over_softly(api, url):
    green, mask = half([(0, 200, 0)] * 2).resize((200, 160)), Image.new("L", (200, 160))
    mask.paste(255, (90, 60, 120, 100))
    around = {"mask_blur": 4, "inpainting_fill": 1, "inpaint_full_res": True, "inpaint_full_res_padding": 16}
    result = api.img2img(images=[green], mask_image=mask, **around, **{**SMALL, "denoising_strength": 0.9})
    painted = (np.asarray(result.image) != np.array([0, 200, 0])).any(-1)
    assert painted.shape == (160, 200)
    assert not painted[:, :70].any()
    assert painted[70:90, 95:115].mean() > 0.9
    assert "Mask blur: 4, Masked area padding: 16" in result.info["infotexts"][0]
    files = {name: png(image) for name, image in (("init_image", green), ("mask", mask))}
    asked = {
        "prompt_syntax": "a1111",
        "strength": 0.9,
        "num_inference_steps": 4,
        "mask_blur": 4,
        "padding_mask_crop": 16,
    }
    given = {name: SMALL[name] for name in ("prompt", "seed", "width", "height")}
    ours = plain.grpc(url, **given, **asked, **files, negative_prompt="", guidance_scale=7.0, sampler="euler")
    assert np.array_equal(np.asarray(result.image), np.asarray(Image.open(io.BytesIO(ours["image"]))))


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_progress_shows_a_preview_and_interrupt_ends_it(api, http, url):
    results = []
    long = {**SMALL, "width": 256, "height": 256, "steps": 100, "n_iter": 2}
    asking = threading.Thread(target=lambda: results.append(api.txt2img(**long)))
    asking.start()
    until(lambda: http.get("/progress").json()["current_image"])
    told = http.get("/progress").json()
    assert 0 < told["progress"] < 1
    assert told["state"]["sampling_steps"] == 100
    assert base64.b64decode(http.get("/progress").json()["current_image"])[:4] == b"\x89PNG"
    assert http.get("/progress?skip_current_image=true").json()["current_image"] is None
    assert http.post("/interrupt").json() == {}
    asking.join()
    assert len(results[0].images) < 2
    assert results[0].info["interrupted"]
    until(lambda: plain.verb(url, "stats")["running"] == 0)
    assert http.get("/progress").json()["progress"] == 0


def test_lists_have_the_names_that_requests_may_use(http):
    samplers = http.get("/samplers").json()
    assert {"Euler", "DPM++ 2M"} <= {one["name"] for one in samplers}
    for one in samplers:
        steps = {"steps": 4, "width": 64, "height": 64}
        names = [one["name"], *one["aliases"]]
        first, *others = [http.post("/txt2img", json={**SMALL, **steps, "sampler_name": name}).json() for name in names]
        assert [other["images"] for other in others] == [first["images"]] * len(others)
    schedulers = [one["name"] for one in http.get("/schedulers").json()]
    assert {"automatic", "karras"} <= {*schedulers}
    assert http.get("/options").json()["sd_model_checkpoint"] == DEFAULT.name
    assert isinstance(http.get("/loras").json(), list)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"enable_hr": True}, "enable_hr"),
        ({"restore_faces": True}, "restore_faces"),
        ({"tiling": True}, "tiling"),
        ({"styles": ["anime"]}, "styles"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"script_name": "x/y plot"}, "script_name"),
        ({"alwayson_scripts": {"adetailer": {"args": []}}}, "alwayson_scripts"),
        ({"s_churn": 1}, "s_churn"),
        ({"override_settings": {"sd_vae": "x"}}, "override_settings.sd_vae"),
        ({"override_settings": "x"}, "override_settings"),
        ({"override_settings": {"sd_model_checkpoint": "none-such"}}, "model"),
        ({"sampler_name": "None Such"}, "sampler_name"),
        ({"sampler_name": 7}, "sampler_name"),
        ({"scheduler": "SGM Uniform"}, "scheduler"),
        ({"steps": 0}, "steps"),
        ({"cfg_scale": "high"}, "cfg_scale"),
        ({"clip_skip": 0}, "clip_skip"),
        ({"batch_size": 65}, "batch_size"),
        ({"n_iter": "x"}, "n_iter"),
        ({"width": 65}, "width"),
        ({"seed": -2}, "seed"),
        ({"mask": "aGVsbG8="}, "mask"),
        ({"init_images": ["aGVsbG8="]}, "init_images"),
        ({"colour": "red"}, "colour"),
        ({"prompt": None}, "prompt"),
    ],
)
def test_what_cannot_be_honoured_is_named(http, given, param):
    answer = http.post("/txt2img", json={**SMALL, **given})
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, "init_images"),
        ({"init_images": []}, "init_images"),
        ({"init_images": ["aGVsbG8="]}, "init_images"),
        ({"init_images": ["/etc/passwd"]}, "init_images"),
        ({"init_images": "x"}, "init_images"),
        ({"resize_mode": 1}, "resize_mode"),
        ({"mask": "aGVsbG8=", "inpainting_mask_invert": 1}, "mask"),
        ({"mask": "GREEN", "mask_blur": 400}, "mask_blur"),
        ({"mask": "GREEN", "inpaint_full_res": "yes"}, "inpaint_full_res"),
        ({"mask": "GREEN", "inpaint_full_res": True, "inpaint_full_res_padding": -1}, "inpaint_full_res_padding"),
        ({"extend": [0, 0, 0, 5000]}, "extend"),
        ({"mask": "GREEN", "mask_blur": 0, "inpainting_fill": 0}, "inpainting_fill"),
        ({"inpainting_mask_invert": 2}, "inpainting_mask_invert"),
        ({"denoising_strength": 2}, "denoising_strength"),
    ],
)
def test_what_is_wrong_with_pictures_is_named(http, given, param):
    file = io.BytesIO()
    half(["green", "white"]).save(file, "PNG")
    green = base64.b64encode(file.getvalue()).decode()
    given = {name: green if value == "GREEN" else value for name, value in given.items()}
    started = {"init_images": [green]} if given else {}
    answer = http.post("/img2img", json={**SMALL, "steps": 10, **started, **given})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_adapters_in_a_prompt_are_honoured_or_refused_never_passed_on(http):
    answer = http.post("/txt2img", json={**SMALL, "prompt": "a fox <lora:none-such:0.8>"})
    assert answer.status_code == 400
    assert re.search("none-such", answer.json()["error"]["message"])


def test_options_are_not_kept_for_later_requests(http):
    assert http.post("/options", json={"sd_model_checkpoint": DEFAULT.name}).status_code == 200
    refused = http.post("/options", json={"sd_model_checkpoint": "other"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "sd_model_checkpoint")


def test_info_is_json_as_text(http):
    info = http.post("/txt2img", json=SMALL).json()["info"]
    assert json.loads(info)["seed"] == 3


def test_weights_in_a_prompt_are_honoured_or_refused(http):
    weighted = {**SMALL, "prompt": "a flat icon of a (penguin:1.4)"}
    answer = http.post("/txt2img", json=weighted).json()
    assert json.loads(answer["info"])["triptych"][0]["prompt_syntax"] == "a1111"
    assert answer["images"] != http.post("/txt2img", json=SMALL).json()["images"]
    without = next(name for name, family in FAMILIES.items() if "prompt_syntax" not in family.parameters)
    other = {"prompt": weighted["prompt"], "override_settings": {"sd_model_checkpoint": without}}
    refused = http.post("/txt2img", json=other)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
