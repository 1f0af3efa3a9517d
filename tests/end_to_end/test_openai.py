"""OpenAI's images over the HTTP front, as OpenAI's own SDK asks for them, on the real server."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import threading
import uuid

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from triptych import Client
from triptych_contract.families import DEFAULT, FAMILIES
from triptych_contract.parameters import File

from .. import fronts, plain
from ..fronts import SMALL, until

PROMPT = "a flat icon of a penguin"
PRESETS = """
[models.quick]
num_inference_steps = 3
width = 128
height = 128
"""
# The demo at its largest: long enough to be caught in the act.
LONG = {"prompt": "a 3d rocket", "num_inference_steps": 100, "height": 256, "width": 256, "seed": 1}


@pytest.fixture(scope="module")
def front(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("front")
    (folder / "presets.toml").write_text(PRESETS)
    with fronts.running(folder, demo.grpc, "--config", folder / "presets.toml") as front:
        yield front


@pytest.fixture
def sdk(front):
    with openai.OpenAI(base_url=f"{front.address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def http(front):
    with httpx2.Client(base_url=front.address, timeout=60) as client:
        yield client


def generate(http, **body):
    return http.post("/v1/images/generations", json=body)


def pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"), np.float32)


def files(**pictures):
    return {name: (f"{name}.png", data, "image/png") for name, data in pictures.items()}


def png(colour, size=(128, 128), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def half_transparent(size=(128, 128)):
    """A mask of OpenAI's: its right half is to be painted anew."""
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (size[0] // 2, 0, *size))
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


def test_the_sdk_draws_the_very_bytes_that_grpc_gives(sdk, url, tmp_path):
    asked = {"num_inference_steps": 4, "seed": 3}
    answer = sdk.images.generate(prompt=PROMPT, size="128x128", extra_body=asked)
    data = base64.b64decode(answer.data[0].b64_json)
    assert data == plain.grpc(url, prompt=PROMPT, width=128, height=128, **asked)["image"]
    assert (answer.size, answer.output_format, answer.background) == ("128x128", "png", "opaque")
    file = tmp_path / "one.png"
    file.write_bytes(data)
    replayed = subprocess.run(
        [*fronts.TRIPTYCH, "replay", "--url", url, file], capture_output=True, text=True, check=False
    )
    assert (replayed.returncode, replayed.stdout.split()[0]) == (0, "equal")


def test_n_pictures_have_seeds_one_after_the_other_and_their_receipts(http, url):
    answer = generate(http, **{**SMALL, "n": 4}).json()
    told = [datum["triptych"] for datum in answer["data"]]
    assert [one["seed"] for one in told] == [3, 4, 5, 6]
    assert [one["receipt"]["seed"] for one in told] == [3, 4, 5, 6]
    last = base64.b64decode(answer["data"][3]["b64_json"])
    assert last == plain.grpc(url, prompt=PROMPT, width=128, height=128, num_inference_steps=4, seed=6)["image"]


def test_usage_grows_with_pictures_and_their_size(http):
    one, four = (generate(http, **{**SMALL, "n": n}).json()["usage"] for n in (1, 4))
    small = generate(http, **{**SMALL, "size": "64x64"}).json()["usage"]
    assert four["output_tokens"] == 4 * one["output_tokens"] == 16 * small["output_tokens"]
    assert one["total_tokens"] == one["input_tokens"] + one["output_tokens"]
    assert one["input_tokens"] == sum(one["input_tokens_details"].values()) > 0


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_formats_come_as_base64_and_as_data_urls(sdk, format):
    asked = {"prompt": PROMPT, "size": "64x64", "output_format": format, "extra_body": {"num_inference_steps": 2}}
    (plainly,) = sdk.images.generate(**asked, response_format="b64_json").data
    assert Image.open(io.BytesIO(base64.b64decode(plainly.b64_json))).format == format.upper()
    (linked,) = sdk.images.generate(**asked, response_format="url").data
    head, _, data = linked.url.partition(",")
    assert head == f"data:image/{format};base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (64, 64)


def test_models_are_the_ensembles_and_the_presets(sdk, http):
    assert [model.id for model in sdk.models.list()] == [*FAMILIES, "quick"]
    assert sdk.models.retrieve("quick").id == "quick"
    receipt = generate(http, model="quick", prompt=PROMPT).json()["data"][0]["triptych"]["receipt"]
    assert (receipt["num_inference_steps"], receipt["width"]) == (3, 128)
    own = generate(http, model="quick", prompt=PROMPT, num_inference_steps=2).json()
    assert own["data"][0]["triptych"]["receipt"]["num_inference_steps"] == 2
    with pytest.raises(openai.NotFoundError) as error:
        sdk.images.generate(model="none-such", prompt=PROMPT)
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("model", FAMILIES)
def test_every_family_draws(sdk, model):
    answer = sdk.images.generate(model=model, prompt=PROMPT, quality="low")
    assert answer.data[0].b64_json


def test_quality_is_a_number_of_steps(http, url):
    with Client(url) as client:
        own = client.card().default_num_inference_steps
    steps = {
        quality: generate(http, prompt=PROMPT, size="64x64", quality=quality).json()["data"][0]["triptych"]["receipt"]
        for quality in ("low", "auto", "medium", "hd")
    }
    assert {quality: receipt["num_inference_steps"] for quality, receipt in steps.items()} == {
        "low": own // 2, "auto": own, "medium": own, "hd": own * 2
    }  # fmt: skip
    refused = generate(http, prompt=PROMPT, quality="low", num_inference_steps=5)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "quality")


def test_streaming_gives_partial_images_that_get_nearer_to_the_last(sdk):
    asked = {"num_inference_steps": 60, "seed": 5}
    events = list(sdk.images.generate(prompt=PROMPT, size="256x256", stream=True, partial_images=3, extra_body=asked))
    *partial, last = events
    assert [event.type for event in partial] == ["image_generation.partial_image"] * len(partial)
    assert [event.partial_image_index for event in partial] == [0, 1, 2]
    assert last.type == "image_generation.completed"
    assert last.usage.output_tokens > 0
    final = pixels(last.b64_json)
    small = Image.fromarray(final.astype(np.uint8))
    distances = []
    for event in partial:
        seen = pixels(event.b64_json)
        assert event.size == f"{seen.shape[1]}x{seen.shape[0]}"
        distances.append(float(np.abs(seen - np.asarray(small.resize(seen.shape[1::-1]), np.float32)).mean()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < distances[0] * 0.9


def test_a_stream_ends_with_the_same_bytes(sdk, http):
    (event,) = sdk.images.generate(
        prompt=PROMPT, size="128x128", stream=True, extra_body={"num_inference_steps": 4, "seed": 3}
    )
    assert event.b64_json == generate(http, **SMALL).json()["data"][0]["b64_json"]


def test_what_is_wrong_with_a_stream_is_an_answer_not_an_event(sdk):
    with pytest.raises(openai.BadRequestError) as error:
        sdk.images.generate(prompt=PROMPT, stream=True, n=2)
    assert error.value.param == "n"
    with pytest.raises(openai.BadRequestError):
        sdk.images.generate(prompt=" ", stream=True)


def test_an_edit_paints_where_the_mask_is_transparent(sdk):
    green = png((0, 200, 0))
    answer = sdk.images.edit(
        image=files(image=green)["image"],
        mask=files(mask=half_transparent())["mask"],
        prompt="a flat icon of a red apple",
        extra_body={"num_inference_steps": 10, "seed": 1},
    )
    painted = pixels(answer.data[0].b64_json)
    difference = np.abs(painted - np.array([0, 200, 0])).mean((0, 2))
    assert difference[80:].mean() > 2 * difference[:48].mean()


def test_an_edit_as_json_is_the_edit_as_a_form(sdk, http):
    green, mask = png((0, 200, 0)), half_transparent()
    form = sdk.images.edit(
        image=green, mask=mask, prompt=PROMPT, extra_body={"num_inference_steps": 4, "seed": 1, "strength": 0.8}
    )
    url = {"image_url": "data:image/png;base64," + base64.b64encode(green).decode()}
    painted = {"image_url": base64.b64encode(mask).decode()}
    body = {"prompt": PROMPT, "num_inference_steps": 4, "seed": 1, "strength": 0.8, "images": [url], "mask": painted}
    answer = http.post("/v1/images/edits", json=body)
    assert answer.json()["data"][0]["b64_json"] == form.data[0].b64_json
    assert answer.json()["usage"]["input_tokens_details"]["image_tokens"] > 0


def test_an_edit_without_a_mask_begins_with_the_picture(sdk):
    answer = sdk.images.edit(image=png((0, 200, 0)), prompt=PROMPT, extra_body={"strength": 0.3, "seed": 1})
    assert np.abs(pixels(answer.data[0].b64_json) - np.array([0, 200, 0])).mean() < 60


@pytest.mark.parametrize("extend", [[0, 0, 64, 0], "0,0,64,0"])
def test_an_edit_extends_a_picture(sdk, extend):
    more = {"extend": extend, "num_inference_steps": 4, "seed": 1}
    answer = sdk.images.edit(image=png((0, 200, 0)), prompt=PROMPT, extra_body=more)
    assert (answer.size, pixels(answer.data[0].b64_json).shape) == ("192x128", (128, 192, 3))
    assert answer.data[0].triptych["receipt"]["extend"] == [0, 0, 64, 0]


def test_an_edit_paints_a_part_of_a_picture_that_keeps_its_size(sdk):
    kept = Image.open(io.BytesIO(half_transparent())).resize((100, 60))
    file = io.BytesIO()
    kept.save(file, "PNG")
    picture = io.BytesIO()
    Image.new("RGB", (100, 60), (0, 200, 0)).save(picture, "PNG")
    more = {"padding_mask_crop": 4, "mask_blur": 2, "num_inference_steps": 4, "seed": 1}
    answer = sdk.images.edit(image=picture.getvalue(), mask=file.getvalue(), prompt=PROMPT, extra_body=more)
    assert (answer.size, pixels(answer.data[0].b64_json).shape) == ("100x60", (60, 100, 3))


def test_streaming_an_edit(sdk):
    events = list(sdk.images.edit(image=png((0, 200, 0)), prompt=PROMPT, stream=True, extra_body={"seed": 1}))
    assert [event.type for event in events] == ["image_edit.completed"]


@pytest.mark.parametrize(
    ("pictures", "param"),
    [
        ({"image": [b"one", b"two"]}, "image"),
        ({"image": b"no picture"}, "image"),
        ({"image": png("red"), "mask": png("red")}, "mask"),
        ({"image": png("red"), "mask": b"no picture"}, "mask"),
        ({"image": png("red", mode="RGBA")[:200]}, "image"),
    ],
)
def test_an_edit_names_what_is_wrong_with_its_pictures(sdk, pictures, param):
    with pytest.raises(openai.BadRequestError) as error:
        sdk.images.edit(**pictures, prompt=PROMPT, extra_body={"strength": 0.9})
    assert error.value.param == param


def test_models_that_start_from_no_picture_say_so(sdk):
    without = next(
        name for name, one in FAMILIES.items() if not any(isinstance(p.kind, File) for p in one.parameters.values())
    )
    with pytest.raises(openai.BadRequestError) as error:
        sdk.images.edit(model=without, image=png("red"), prompt=PROMPT)
    assert error.value.param == "image"


def test_every_name_of_the_contract_is_an_extension(http):
    """Each is either honoured, or refused for its value by its name; none is unknown, none is passed over."""
    for name, one in DEFAULT.parameters.items():
        if name == "prompt":
            continue
        answer = generate(http, prompt=PROMPT, **{name: {"no": "value"}})
        problems = [problem["field"] for problem in answer.json()["error"]["problems"]]
        assert (answer.status_code, problems) == (400, [name]), one
    assert generate(http, prompt=PROMPT, colour="red").json()["error"]["param"] == "colour"


def test_a_picture_to_start_from_is_base64_and_never_a_path(http):
    answer = generate(http, prompt=PROMPT, init_image="/etc/passwd")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "init_image")
    data = base64.b64encode(png("red")).decode()
    assert generate(http, prompt=PROMPT, init_image=data, strength=0.5, num_inference_steps=4).status_code == 200


def test_all_that_is_wrong_is_told_at_once(http):
    answer = generate(http, prompt="", n=11, size="65x64", seed=-1, sampler="none", style="vivid")
    fields = {problem["field"] for problem in answer.json()["error"]["problems"]}
    assert fields == {"prompt", "n", "size", "seed", "sampler", "style"}
    assert {*answer.json()["error"]} == {"message", "type", "param", "code", "problems"}


def test_the_sdk_raises_its_own_exceptions(sdk):
    with pytest.raises(openai.BadRequestError) as error:
        sdk.images.generate(prompt=PROMPT, size="65x64")
    assert error.value.param == "size"
    assert "nearest" in error.value.message
    for deadline_ms in (1, 100):  # before it is begun, and under way
        with pytest.raises(openai.APIStatusError) as late:
            sdk.images.generate(prompt=PROMPT, extra_body={**LONG, "deadline_ms": deadline_ms})
        assert (late.value.status_code, late.value.code) == (408, "deadline_exceeded")


def test_who_goes_away_frees_the_slot(front, url):
    before = plain.verb(url, "stats")["cancelled_total"]
    with pytest.raises(httpx2.TimeoutException), httpx2.Client(base_url=front.address, timeout=1) as impatient:
        impatient.post("/v1/images/generations", json={**LONG, "n": 4})
    until(lambda: plain.verb(url, "stats")["cancelled_total"] == before + 4)
    with httpx2.stream(
        "POST", f"{front.address}/v1/images/generations", json={**LONG, "stream": True, "partial_images": 3}, timeout=60
    ) as answer:
        lines = answer.iter_lines()  # which closes the answer when it is forgotten
        assert next(lines) == "event: image_generation.partial_image"
        assert plain.verb(url, "stats")["running"] == 1
    until(lambda: plain.verb(url, "stats")["cancelled_total"] == before + 5)
    assert plain.verb(url, "stats")["running"] == 0


def test_requests_are_logged_without_what_was_drawn(front, http):
    given, trace = str(uuid.uuid4()), f"00-{uuid.uuid4().hex}-00f067aa0ba902b7-01"
    answer = http.post(
        "/v1/images/generations?secret=x",
        json={**SMALL, "prompt": "a secret penguin"},
        headers={"x-request-id": given, "traceparent": trace},
    )
    assert answer.headers["x-request-id"] == given
    until(lambda: given in front.log.read_text())  # it is written once the answer is out
    (line,) = [line for line in front.lines() if line["request_id"] == given]
    assert (line["route"], line["status"], line["model"]) == ("/v1/images/generations", 200, DEFAULT.name)
    assert line["jobs"] == [answer.json()["data"][0]["triptych"]["request_id"]]
    assert line["trace_id"] == trace.split("-")[1]
    assert "secret" not in front.log.read_text()


def test_operators_see_health_readiness_and_metrics(http):
    generate(http, **SMALL)
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json()["status"] == "ready"
    page = http.get("/metrics").text
    labels = f'model="{DEFAULT.name}",outcome="ok",route="/v1/images/generations"'
    assert float(re.search(rf"triptych_api_request_seconds_count{{{labels}}} (\S+)", page)[1]) >= 1
    assert float(re.search(rf'triptych_api_images_total{{model="{DEFAULT.name}"}} (\S+)', page)[1]) >= 1


def test_two_hundred_streams_at_once_all_end(front):
    """None is dropped: 200 are open before the first is read."""
    body = {**SMALL, "size": "64x64", "num_inference_steps": 2, "stream": True, "partial_images": 1}
    del body["seed"]
    limits = httpx2.Limits(max_connections=None)
    results = []

    def one(client):
        with client.stream("POST", "/v1/images/generations", json=body) as answer:
            names = [line for line in answer.iter_lines() if line.startswith("event:")]
        results.append((answer.status_code, names[-1]))

    with httpx2.Client(base_url=front.address, timeout=120, limits=limits) as client:
        threads = [threading.Thread(target=one, args=(client,)) for _ in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [(200, "event: image_generation.completed")] * 200


NODE = """
import OpenAI, {toFile} from "openai";
import fs from "fs";
const client = new OpenAI({baseURL: process.env.BASE, apiKey: "none", maxRetries: 0});
const asked = {prompt: "a flat icon of a penguin", size: "128x128", num_inference_steps: 4, seed: 3};
const drawn = await client.images.generate({...asked, n: 4});
const image = await toFile(fs.createReadStream("image.png"), null, {type: "image/png"});
const mask = await toFile(fs.createReadStream("mask.png"), null, {type: "image/png"});
const edited = await client.images.edit({image, mask, prompt: asked.prompt, num_inference_steps: 4});
const types = [];
const stream = await client.images.generate({...asked, num_inference_steps: 40, stream: true, partial_images: 3});
for await (const event of stream) types.push(event.type);
let error;
try { await client.images.generate({...asked, size: "65x64"}); }
catch (raised) { error = [raised instanceof OpenAI.BadRequestError, raised.param]; }
console.log(JSON.stringify({images: drawn.data.map(one => one.b64_json), edited: edited.data.length, types, error}));
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A folder with OpenAI's SDK for Node."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "openai@6"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm does not reach its registry")
    if done.returncode:
        pytest.skip(f"npm cannot install openai: {done.stderr[-200:]}")
    return folder


def test_the_node_sdk_does_all_of_it(node, front, http):
    (node / "ask.mjs").write_text(NODE)
    (node / "image.png").write_bytes(png((0, 200, 0)))
    (node / "mask.png").write_bytes(half_transparent())
    done = subprocess.run(
        ["node", "ask.mjs"],
        cwd=node,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "BASE": f"{front.address}/v1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["images"] == [one["b64_json"] for one in generate(http, **{**SMALL, "n": 4}).json()["data"]]
    assert (told["edited"], told["error"]) == (1, [True, "size"])
    assert told["types"] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
