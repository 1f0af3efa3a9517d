"""Controls (ControlNets) on the real Triton: each row of a batch with its own, bad requests, files made again, other doors."""

from __future__ import annotations

import base64
import io
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from tritonclient.utils import InferenceServerException

from triptych import Client, InvalidRequest
from triptych_server import Server

from .. import fronts, loras, plain
from .test_cli import triptych

SEED = 0  # of the tiny build, which has the controls `edges` and `depth` and takes adapters
SMALL = {"prompt": "a red fox", "num_inference_steps": 4, "height": 64, "width": 64}
REQUESTS = int(os.environ.get("TRIPTYCH_CONTROL_REQUESTS", "24"))


def png(number, size=(64, 64)):
    image = Image.new("RGB", size, (number * 37 % 256, 90, 30))
    ImageDraw.Draw(image).ellipse((4 + number % 20, 4, 50, 40 + number % 20), outline="white", width=2)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class Served:
    def __init__(self, url):
        self.url = url

    def draw(self, request_id="", **given):
        return plain.grpc(self.url, request_id, **{**SMALL, "seed": 1, **given})

    def refusal(self, **given):
        with pytest.raises(InferenceServerException) as error:
            plain.grpc(self.url, **{**SMALL, **given})
        assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
        return error.value.message()


@pytest.fixture(scope="module")
def served(tiny, tmp_path_factory):
    build, folder = tiny(SEED)[1], tmp_path_factory.mktemp("loras")
    for number in range(3):
        tensors = loras.tensors(loras.layers_of(build), number, convolutions=True, naming="sgm")
        (folder / f"a{number}.safetensors").write_bytes(loras.pack(tensors))
    with Server(build, http_port=0, grpc_port=0, metrics_port=0, adapters=folder) as server:
        yield Served(server.addresses.grpc)


def mixed(number):
    """Requests with none, one or two controls, some from a picture, with a mask, or wearing adapters."""
    choose = random.Random(number)
    names = choose.sample(["edges", "depth"], choose.choice([0, 0, 1, 1, 2]))
    asked = {
        "seed": number,
        "num_inference_steps": choose.choice([6, 9, 12, 16]),
        "guidance_scale": choose.choice([1.0, 5.0]),
        "sampler": choose.choice(["euler", "euler_a", "dpmpp_2m", "heun"]),
        "use_cache": False,
    }
    if names:
        shares = [choose.choice([(0, 1), (0, 0.5), (0.3, 1)]) for _ in names]
        asked["control"] = json.dumps(
            [
                {"name": name, "scale": round(choose.uniform(0.2, 1.5), 2), "start": start, "end": end}
                for name, (start, end) in zip(names, shares, strict=True)
            ]
        )
        asked["control_images"] = [png(number + place) for place in range(len(names))]
    if choose.random() < 0.3:
        asked |= {"init_image": png(number), "strength": 0.7}
        if choose.random() < 0.5:
            asked |= {"mask": png(number + 9)}
    if choose.random() < 0.3:
        asked["lora"] = f"a{number % 3}:0.8"
    return asked


def test_rows_with_other_controls_share_batches_and_keep_their_bytes(served):
    asked = [mixed(k) for k in range(REQUESTS)]
    alone = [served.draw(**request)["image"] for request in asked]
    before = plain.verb(served.url, "stats")
    with ThreadPoolExecutor(REQUESTS) as pool:
        together = list(pool.map(lambda request: served.draw(**request)["image"], asked))
    after = plain.verb(served.url, "stats")
    batches, rows = (after[name] - before[name] for name in ("batches_total", "rows_total"))
    assert together == alone
    assert rows / batches > 2, f"{REQUESTS} requests: {rows / batches:.2f} rows a batch"
    assert len(set(alone)) == REQUESTS


def test_verify_looks_at_all_graphs(served):
    verdicts = plain.verb(served.url, "verify")["denoisers"]
    assert {"unet", "unet_adapters", "unet_control", "control_edges", "control_depth"} <= verdicts.keys()
    assert all(verdict["batch_invariant"] for verdict in verdicts.values())


def test_describe_lists_the_controls_and_the_memory_that_they_take(served):
    described = plain.verb(served.url, "describe")["models"]["sdxl"]
    assert described["model"]["controls"] == ["edges", "depth"]
    shape = described["model"]["control_bytes"]
    assert shape > 0
    assert shape % 4 == 0


def test_a_request_without_controls_has_other_bytes_and_none_of_their_stages(served):
    without, with_one = served.draw(), served.draw(control="edges", control_images=[png(1)])
    assert without["image"] != with_one["image"]
    stages = [answer["receipt"]["stages"].keys() for answer in (without, with_one)]
    assert stages[1] - stages[0] == {"unet_control", "picture_edges", "control_edges"}


def test_the_cache_knows_controls_by_their_pictures(served):
    asked = {"control": "edges:0.5", "control_images": [png(1)]}
    first = served.draw(**asked)
    assert served.draw(**asked)["receipt"]["cached"]
    assert not served.draw(**{**asked, "control": "edges:0.6"})["receipt"]["cached"]
    other = served.draw(**{**asked, "control_images": [png(2)]})
    assert not other["receipt"]["cached"]
    assert other["image"] != first["image"]


BAD = [
    ({"control": "canny"}, "control: canny, which this model does not have given; legal: edges, depth"),
    ({"control": "../edges"}, "control: ../edges, which this model does not have"),
    ({"control": "edges", "control_images": None}, "control: without control_images given"),
    ({"control": None}, "control_images: without control given"),
    ({"control": "edges, depth"}, "control: image 1 of 1 given; legal: 0 … 0"),
    ({"control": "edges:5"}, "control: edges with scale 5 given; legal: a scale of 0 … 4"),
    ({"control": "edges:1:0.5-0.2"}, "control: edges from 0.5 to 0.2 given; legal: 0 ≤ start < end ≤ 1"),
    ({"control": ",".join(["edges"] * 5)}, "control: 5 controls given; legal: at most 4"),
    ({"control_images": [png(1)] * 2}, "control_images: 2 pictures for 1 given"),
    ({"control_images": [png(1)] * 5}, "control_images: 5 pictures given; legal: 1 … 4"),
    ({"control_images": [b"no picture"]}, "control_images: no readable picture (UnidentifiedImageError) given"),
]


@pytest.mark.parametrize(("wrong", "words"), BAD)
def test_a_bad_request_is_told_by_name(served, wrong, words):
    given = {"control": "edges", "control_images": [png(1)], **wrong}
    assert words in served.refusal(**{name: value for name, value in given.items() if value is not None})


def test_a_damaged_picture_is_told_by_name_and_disturbs_nobody(served):
    damaged = bytearray(png(1))
    damaged[60:70] = bytes(10)
    assert "control_images: a damaged file (" in served.refusal(control="edges", control_images=[bytes(damaged)])
    assert served.draw()["image"]


def test_every_door_says_the_same(served, tmp_path):
    with (
        fronts.running(tmp_path, served.url) as front,
        httpx2.Client(base_url=front.address, timeout=60) as http,
        Client(served.url) as client,
    ):
        for wrong, words in BAD[:10]:
            given = {"control": "edges", "control_images": [png(1)], **wrong}
            given = {name: value for name, value in given.items() if value is not None}
            with pytest.raises(InvalidRequest) as error:
                client.generate("a fox", **given)
            assert words in str(error.value)
            body = {**given, "prompt": "a fox"}
            if "control_images" in body:
                body["control_images"] = [base64.b64encode(one).decode() for one in body["control_images"]]
            refused = http.post("/v1/images/generations", json=body)
            assert refused.status_code == 400
            assert words in refused.json()["error"]["message"]


def test_over_http_the_same_request_makes_the_same_picture(served, tmp_path):
    named = [{"name": "edges", "scale": 0.8, "end": 0.5}, {"name": "depth", "image": 0}]
    begun = {"init_image": png(3), "strength": 0.6}
    ours = served.draw(control=json.dumps(named), control_images=[png(1)])
    edited = served.draw(control=json.dumps(named), control_images=[png(1)], **begun)
    files = [("control_images[]", ("edges.png", png(1), "image/png"))]
    asked = {**SMALL, "seed": 1}
    with fronts.running(tmp_path, served.url) as front, httpx2.Client(base_url=front.address, timeout=60) as http:
        url = f"data:image/png;base64,{base64.b64encode(png(1)).decode()}"
        drawn = http.post("/v1/images/generations", json={**asked, "control": named, "control_images": [url]}).json()
        assert base64.b64decode(drawn["data"][0]["b64_json"]) == ours["image"]
        form = {**{name: str(value) for name, value in asked.items()}, "control": json.dumps(named), "strength": "0.6"}
        files.append(("image", ("start.png", png(3), "image/png")))
        drawn = http.post("/v1/images/edits", data=form, files=files).json()
        assert base64.b64decode(drawn["data"][0]["b64_json"]) == edited["image"]


def test_a1111s_clients_ask_as_its_extension_is_asked(served, tmp_path):
    ours = served.draw(control="edges:0.8:0-0.5, depth", control_images=[png(1), png(2)], prompt_syntax="a1111")
    units = [
        {"enabled": True, "module": "none", "model": "edges [0123abcd]", "weight": 0.8, "guidance_end": 0.5},
        {"module": "none", "model": "depth", "pixel_perfect": False, "control_mode": "Balanced", "guidance_start": 0},
    ]
    for number, unit in enumerate(units):
        unit["image"] = base64.b64encode(png(number + 1)).decode()
    body = {"prompt": SMALL["prompt"], "steps": 4, "width": 64, "height": 64, "seed": 1}
    with fronts.running(tmp_path, served.url) as front, httpx2.Client(base_url=front.address, timeout=60) as http:

        def asked(*args):
            scripts = {"controlnet": {"args": [*args, {"enabled": False, "model": "none"}]}}
            return http.post("/sdapi/v1/txt2img", json={**body, "alwayson_scripts": scripts})

        assert base64.b64decode(asked(*units).json()["images"][0]) == ours["image"]
        assert http.get("/controlnet/model_list").json() == {"model_list": ["edges", "depth"]}
        for wrong, field in (
            ({"module": "canny"}, "alwayson_scripts.controlnet.module"),
            ({"colour": 1}, "alwayson_scripts.controlnet.colour"),
            ({"model": "canny"}, "alwayson_scripts.controlnet"),
            ({"weight": "much"}, "alwayson_scripts.controlnet"),
            ({"image": None}, "alwayson_scripts.controlnet"),
        ):
            refused = asked({**units[0], **wrong})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, field), wrong


def test_a_file_tells_its_controls_and_is_made_again_with_their_pictures(served, tmp_path):
    picture = tmp_path / "edges:1.png"
    picture.write_bytes(png(5))
    asked = ["--control", f"edges={picture}:0.5:0-0.75", "--size", "64x64", "--steps", "4", "--seed", "4"]
    made = triptych("generate", "a fox", *asked, "-o", str(tmp_path), "--url", served.url)
    assert made.returncode == 0, made.stderr
    path = made.stdout.strip()
    text = Image.open(path).text
    unit = "Weight: 0.5, Resize Mode: Just Resize, Guidance Start: 0, Guidance End: 0.75"
    assert 'ControlNet 0: "Module: none, Model: edges [' in text["parameters"]
    assert unit in text["parameters"]
    missing = triptych("replay", path, "--url", served.url)
    assert missing.returncode != 0
    assert "--control-image FILE with SHA-256 " in missing.stdout
    done = triptych("replay", path, "--control-image", str(picture), "--url", served.url)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_control_leads_where_its_picture_says(served):
    """The picture at a scale of nothing is the one without; the stronger, the further away."""
    followed = {"control_images": [png(1)]}
    without, weak, strong = (
        np.asarray(Image.open(io.BytesIO(answer["image"]))).astype(int)
        for answer in (
            served.draw(),
            served.draw(control="edges:0.05", **followed),
            served.draw(control="edges:2", **followed),
        )
    )
    assert 0 < np.abs(weak - without).mean() < np.abs(strong - without).mean()


def test_a_build_without_controls_says_so(demo):
    with pytest.raises(InferenceServerException, match="nothing: this model was exported without --control"):
        plain.grpc(demo.grpc, prompt="a fox", control="edges", control_images=[png(1)])
