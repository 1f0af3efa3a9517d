"""Image prompts on the real Triton: what they do and do not change, bad requests through every door, and replay."""

from __future__ import annotations

import base64
import hashlib
import io
import json

import httpx2
import numpy as np
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from triptych_server import Server

from .. import fronts, plain
from ..serving.drawn import file, picture
from ..tiny_builds import PROMPTED
from .test_cli import triptych

SMALL = {"prompt": "a red fox", "num_inference_steps": 4, "height": 64, "width": 64, "seed": 1}
LIKE = file(picture())


@pytest.fixture(scope="module")
def url(tiny):
    with Server(tiny(PROMPTED)[1], http_port=0, grpc_port=0, metrics_port=0) as server:
        yield server.addresses.grpc


def pixels(answer):
    return np.asarray(Image.open(io.BytesIO(answer["image"])), float)


def test_a_picture_changes_what_is_drawn_and_its_weight_how_much(url):
    without = plain.grpc(url, **SMALL)
    weak, strong = (plain.grpc(url, **SMALL, ip_adapter_image=LIKE, ip_adapter_scale=scale) for scale in (0.05, 2.0))
    assert 0 < np.abs(pixels(weak) - pixels(without)).mean() < np.abs(pixels(strong) - pixels(without)).mean()
    nothing = plain.grpc(url, **SMALL, ip_adapter_image=LIKE, ip_adapter_scale=0.0)
    assert np.abs(pixels(nothing) - pixels(without)).max() <= 1
    other = plain.grpc(url, **SMALL, ip_adapter_image=file(picture(size=(40, 90))), ip_adapter_scale=2.0)
    assert other["image"] != strong["image"]
    assert plain.grpc(url, **SMALL, ip_adapter_image=LIKE, ip_adapter_scale=2.0)["receipt"]["cached"]


def test_receipts_name_the_picture_and_the_stages_that_saw_it(url):
    with_one = plain.grpc(url, **SMALL, ip_adapter_image=LIKE, ip_adapter="plus", use_cache=False)["receipt"]
    without = plain.grpc(url, **SMALL, use_cache=False)["receipt"]
    assert with_one["ip_adapter_image"] == {"sha256": hashlib.sha256(LIKE).hexdigest(), "height": 50, "width": 75}
    assert (with_one["ip_adapter"], with_one["ip_adapter_scale"]) == ("plus", 1.0)
    assert with_one["stages"].keys() - without["stages"].keys() == {"image_prompt_encoder", "unet_image_prompts"}
    assert without["ip_adapter"] is without["ip_adapter_scale"] is None


BAD = {
    "another name": ({"ip_adapter_image": LIKE, "ip_adapter": "ink"}, "ip_adapter: 'ink' given; legal: plain, plus"),
    "no picture": ({"ip_adapter": "plus"}, "ip_adapter: without ip_adapter_image given; legal: only together with"),
    "a weight alone": ({"ip_adapter_scale": 1.0}, "ip_adapter_scale: without ip_adapter_image given"),
    "too much": ({"ip_adapter_image": LIKE, "ip_adapter_scale": 2.5}, "ip_adapter_scale: 2.5 given; legal: 0 … 2"),
    "less than nothing": ({"ip_adapter_image": LIKE, "ip_adapter_scale": -0.1}, "ip_adapter_scale: -0.1 given"),
    "none at all": ({"ip_adapter_image": b"GIF89a"}, "ip_adapter_image: no readable picture (UnidentifiedImageError)"),
    "cut off": ({"ip_adapter_image": LIKE[:500]}, "ip_adapter_image: a damaged file ("),
}


@pytest.fixture(scope="module")
def http(url, tmp_path_factory):
    running = fronts.running(tmp_path_factory.mktemp("front"), url)
    with running as front, httpx2.Client(base_url=front.address, timeout=60) as client:
        yield client


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_in_the_same_words_through_every_door(url, http, tmp_path, name):
    given, words = BAD[name]
    with pytest.raises(InferenceServerException) as refused:
        plain.grpc(url, **SMALL, **given)
    assert (refused.value.status(), words in refused.value.message()) == ("StatusCode.INVALID_ARGUMENT", True)
    sent = {key: base64.b64encode(one).decode() if isinstance(one, bytes) else one for key, one in given.items()}
    answer = http.post("/v1/images/generations", json={**SMALL, **sent})
    assert (answer.status_code, words in answer.json()["error"]["message"]) == (400, True)
    options = []
    for key, one in given.items():
        if isinstance(one, bytes):
            (tmp_path / key).write_bytes(one)
            one = tmp_path / key
        options.append(f"--{key.replace('_', '-')}={one}")
    done = triptych("generate", "a fox", *options, "--url", url, "-o", str(tmp_path), "--quiet")
    assert (done.returncode, words in done.stderr) == (2, True)


def test_over_http_it_is_the_same_picture(url, http):
    ours = plain.grpc(url, **SMALL, ip_adapter_image=LIKE, ip_adapter="plus", ip_adapter_scale=0.5)
    given = {"ip_adapter_image": base64.b64encode(LIKE).decode(), "ip_adapter": "plus", "ip_adapter_scale": 0.5}
    (drawn,) = http.post("/v1/images/generations", json={**SMALL, **given}).json()["data"]
    assert base64.b64decode(drawn["b64_json"]) == ours["image"]


def test_a_file_is_made_again_with_the_picture_given(url, tmp_path):
    (tmp_path / "like.png").write_bytes(LIKE)
    like = ["--ip-adapter-image", str(tmp_path / "like.png"), "--url", url]
    done = triptych(
        "generate", "a fox", *like, "--size", "64x64", "--steps", "3", "-o", str(tmp_path / "made"), "--json"
    )
    made = json.loads(done.stdout)["path"]
    assert triptych("replay", made, *like).stdout.split()[0] == "equal"
    without = triptych("replay", made, "--url", url)
    assert "needs the picture it was made from: --ip-adapter-image FILE with SHA-256" in without.stdout + without.stderr


def test_a_server_without_image_prompts_says_so(demo):
    words = "ip_adapter_image: a picture given; legal: nothing: this model was exported without --ip-adapter"
    with pytest.raises(InferenceServerException, match=words):
        plain.grpc(demo.grpc, prompt="a fox", ip_adapter_image=LIKE)


def test_all_graphs_give_each_row_the_same_bytes_in_every_batch(url):
    verdicts = plain.verb(url, "verify")["denoisers"]
    names = ("unet", "unet_image_prompts", "unet_control", "control_edges", "refiner_unet")
    assert {name: one["batch_invariant"] for name, one in verdicts.items()} == dict.fromkeys(names, True)
