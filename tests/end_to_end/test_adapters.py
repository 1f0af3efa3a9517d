"""LoRAs on the real Triton: each row of a batch with its own, files that change under a running server, bad requests."""

from __future__ import annotations

import base64
import io
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

from triptych_server import CannotServe, Server

from .. import fronts, loras, plain
from .test_cli import triptych

SEED = 0  # of the tiny build
EVERY = ("unet", "text_encoder", "text_encoder_2")
NAMES = [f"a{number}" for number in range(20)]
SMALL = {"prompt": "a red fox", "num_inference_steps": 4, "height": 64, "width": 64}
WATCHED = "2f0b4c1e-6f6c-4b5e-9d5e-0c7f3a1b2c3d"


class Served:
    def __init__(self, folder, url, layers):
        self.folder, self.url, self.layers = folder, url, layers

    def put(self, name, seed, **more):
        """Put a LoRA into the folder, in one step."""
        tensors = loras.tensors(self.layers, seed, convolutions=True, **{"naming": "sgm", **more})
        (self.folder / ".new").write_bytes(loras.pack(tensors, {"modelspec.trigger_phrase": f"{name} style"}))
        os.replace(self.folder / ".new", self.folder / f"{name}.safetensors")

    def draw(self, lora=(), request_id="", **given):
        asked = {"lora": json.dumps([{"name": name, "scale": scale} for name, scale in lora])} if lora else {}
        return plain.grpc(self.url, request_id, **{**SMALL, "seed": 1, **asked, **given})

    def refusal(self, **given):
        with pytest.raises(InferenceServerException) as error:
            plain.grpc(self.url, **{**SMALL, **given})
        assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
        return error.value.message()


@pytest.fixture(scope="module")
def served(tiny, tmp_path_factory):
    build, folder = tiny(SEED)[1], tmp_path_factory.mktemp("loras")
    with Server(build, http_port=0, grpc_port=0, metrics_port=0, adapters=folder) as server:
        made = Served(folder, server.addresses.grpc, loras.layers_of(build))
        for number, name in enumerate(NAMES):
            made.put(name, number, ranks=(1 + number % 16,), stages=EVERY if number % 3 == 0 else ("unet",))
        yield made


def pixels(answer):
    return np.asarray(Image.open(io.BytesIO(answer["image"]))).astype(int)


def mixed(number):
    choose = random.Random(number)
    worn = choose.sample(NAMES, choose.choice([0, 1, 1, 2, 3]))
    return {
        "lora": [(name, round(choose.uniform(-1.5, 1.5), 2)) for name in worn],
        "seed": number,
        "num_inference_steps": choose.choice([2, 4, 7, 12]),
        "guidance_scale": choose.choice([1.0, 5.0]),
        "sampler": choose.choice(["euler", "euler_a", "dpmpp_2m", "unipc"]),
        "use_cache": False,
    }


def test_rows_with_other_adapters_share_batches_and_keep_their_bytes(served):
    number = int(os.environ.get("TRIPTYCH_ADAPTER_REQUESTS", "24"))
    asked = [mixed(k) for k in range(number)]
    alone = [served.draw(**request)["image"] for request in asked]
    before = plain.verb(served.url, "stats")
    with ThreadPoolExecutor(number) as pool:
        together = list(pool.map(lambda request: served.draw(**request)["image"], asked))
    after = plain.verb(served.url, "stats")
    batches, rows = (after[name] - before[name] for name in ("batches_total", "rows_total"))
    assert rows / batches > 3, f"{number} requests: {rows / batches:.2f} rows a batch"
    assert together == alone
    assert len(set(alone)) == number


def test_verify_looks_at_both_graphs(served):
    verdicts = plain.verb(served.url, "verify")["denoisers"]
    assert {"unet", "unet_adapters"} <= verdicts.keys()
    assert all(verdict["batch_invariant"] for verdict in verdicts.values())


def test_adapters_change_the_picture_as_strongly_as_asked(served):
    without, weak, strong = (pixels(served.draw(lora)) for lora in ((), [("a3", 0.01)], [("a3", 3.0)]))
    assert 0 < np.abs(weak - without).mean() < np.abs(strong - without).mean()
    assert (pixels(served.draw([("a3", 0.0)])) - without).max() <= 1


def test_a_request_without_adapters_has_the_bytes_of_the_plain_build(served, tiny):
    plain_build = tiny(SEED)[1]
    with Server(plain_build, http_port=0, grpc_port=0, metrics_port=0) as server:
        theirs = plain.grpc(server.addresses.grpc, **SMALL, seed=1)
    assert theirs["image"] == served.draw()["image"]


def test_a_replaced_file_is_for_those_who_come_after(served):
    served.put("changing", 100)
    long = {"lora": [("changing", 1.0)], "num_inference_steps": 60, "use_cache": False}
    before = served.draw(**long)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(served.draw, request_id=WATCHED, **long)
        state = plain.verb(served.url, "watch", id=WATCHED)
        while state["step"] < 2:
            state = plain.verb(served.url, "watch", id=WATCHED, since=state["seq"])
        served.put("changing", 101)
        after = served.draw(**{**long, "num_inference_steps": 3})
        kept = running.result()
    assert kept["image"] == before["image"]
    assert kept["receipt"]["lora"] == before["receipt"]["lora"]
    assert after["receipt"]["lora"][0]["sha256"] != before["receipt"]["lora"][0]["sha256"]
    (served.folder / "changing.safetensors").unlink()
    assert "changing, which this server does not have" in served.refusal(lora="changing")


def test_the_cache_knows_adapters_by_their_content(served):
    served.put("cached", 200)
    first = served.draw([("cached", 0.5)])
    assert served.draw([("cached", 0.5)])["receipt"]["cached"]
    assert not served.draw([("cached", 0.25)])["receipt"]["cached"]
    served.put("cached", 201, stages=("text_encoder",))
    other = served.draw([("cached", 0.5)])
    assert not other["receipt"]["cached"]
    assert other["image"] != first["image"]


def test_an_adapter_of_the_text_encoders_alone_counts(served):
    served.put("words", 300, stages=("text_encoder", "text_encoder_2"), strength=2.0)
    assert served.draw([("words", 1.0)])["image"] != served.draw()["image"]


def test_describe_lists_what_is_served_and_what_is_not(served):
    (served.folder / "broken.safetensors").write_bytes(b"\x80pickle")
    described = plain.verb(served.url, "describe")["models"]["sdxl"]
    assert described["adapters"]["a3"] == {"rank": 4, "stages": sorted(EVERY), "trigger_words": "a3 style"}
    assert described["refused_adapters"] == {"broken": "7 bytes; legal: a whole safetensors file"}
    assert described["model"]["adapter_rank"] == 64
    (served.folder / "broken.safetensors").unlink()


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ("nobody", "lora: nobody, which this server does not have given; legal: a0, a1"),
        ("../a1", "lora: ../a1, which this server does not have"),
        ("/etc/passwd", "lora: /etc/passwd, which"),
        ("a1.safetensors", "lora: a1.safetensors, which"),
        ("a15,a14,a13,a12,a11", "lora: rank 16 + 15 + 14 + 13 + 12 = 70 given; legal: at most 64 in all"),
        ("a1, a1", "lora: a1 twice given; legal: each adapter once"),
        ("a1:5", "lora: a1 with scale 5.0 given; legal: a scale of -4 … 4"),
        ("a1:nan", "lora: a1 with scale nan given"),
        (",".join(NAMES[:9]), "lora: 9 adapters given; legal: at most 8"),
        ('[{"name": "a1", "scale": "much"}]', "lora: a1 with scale 'much' given; legal: a number as scale"),
        ('[{"name": "a1", "sha256": "00"}]', "legal: [{"),
        ('[{"scale": 1}]', "legal: [{"),
        ("[[[[", "lora: '[[[[' given"),
        (b"\xff", "lora: byte 0xff at 0 given; legal: UTF-8 text"),
        ("x" * 300, "lora: 300 bytes given; legal: at most 200 bytes of UTF-8"),
    ],
)
def test_a_bad_request_is_told_by_name(served, lora, words):
    assert words in served.refusal(lora=lora)


def test_a_file_is_made_again_and_another_adapter_is_named(served, tmp_path):
    served.put("again", 400)
    asked = ["--lora", "again:0.5", "--lora", "a2", "--size", "64x64", "--steps", "3", "--seed", "4"]
    made = triptych("generate", "a fox", *asked, "-o", str(tmp_path), "--url", served.url)
    path = Path(made.stdout.strip())
    assert Image.open(path).text["parameters"].startswith("a fox <lora:again:0.5> <lora:a2:1>\n")
    assert triptych("replay", str(path), "--url", served.url).returncode == 0
    served.put("again", 401)
    done = triptych("replay", str(path), "--url", served.url)
    assert done.returncode == 1
    assert "other adapters (again " in done.stdout


def test_a_stranger_who_calls_an_encoder_itself_reads_no_file(served):
    import tritonclient.grpc

    client = tritonclient.grpc.InferenceServerClient(served.url)
    ids = np.zeros((1, 24), np.int64)
    given = {"input_ids": ids, "clip_skip": np.zeros((1, 1), np.int64)}
    told = json.dumps([{"name": "x", "sha256": "../../../etc"}]).encode()
    tensors = plain.inputs(tritonclient.grpc, {**given, "adapters": np.array([[told]], object)})
    with pytest.raises(InferenceServerException, match="legal: what the ensemble passes on"):
        client.infer("text_encoder", tensors)


def test_a_server_that_cannot_have_adapters_says_so(tiny, demo, tmp_path):
    with pytest.raises(InferenceServerException, match="nothing: this model was exported without --adapters"):
        plain.grpc(demo.grpc, prompt="a fox", lora="ink")
    for folder, words in ((tmp_path / "none", "is no folder"), (tmp_path, "no build has graphs for them")):
        with pytest.raises(CannotServe, match=words):
            Server(tiny(1)[1], http_port=0, grpc_port=0, metrics_port=0, adapters=folder).start()


def test_over_http_they_are_named_by_our_names_and_by_tags(served, tmp_path):
    worn = [("a0", 0.7), ("a1", -0.5)]
    ours = served.draw(worn)
    with fronts.running(tmp_path, served.url) as front, httpx2.Client(base_url=front.address, timeout=60) as http:
        named = [{"name": name, "scale": scale} for name, scale in worn]
        drawn = http.post("/v1/images/generations", json={**SMALL, "seed": 1, "lora": named}).json()
        assert base64.b64decode(drawn["data"][0]["b64_json"]) == ours["image"]
        asked = {"steps": 4, "width": 64, "height": 64, "seed": 1}
        tagged = http.post(
            "/sdapi/v1/txt2img", json={**asked, "prompt": "a red fox <lora:a0:0.7><lora:a1:-0.5>"}
        ).json()
        assert np.array_equal(pixels({"image": base64.b64decode(tagged["images"][0])}), pixels(ours))
        assert {*NAMES} <= {one["name"] for one in http.get("/sdapi/v1/loras").json()}
        refused = http.post("/sdapi/v1/txt2img", json={**asked, "prompt": "a red fox <lora:none-such>"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
