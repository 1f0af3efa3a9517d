"""The HTTP front against those who mean it no good: bodies, senders, keys, sites; and what survives them."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import struct
import subprocess
import time
import zlib

import httpx2
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.checks import CHECKS, load_all_checks

from triptych_api.openapi import document

from .. import fronts, plain
from ..fronts import SMALL, TRIPTYCH, until

JSON = {"content-type": "application/json"}
LONG = {"prompt": "a 3d rocket", "num_inference_steps": 100, "height": 256, "width": 256, "seed": 1}


@pytest.fixture(scope="module")
def front(demo, tmp_path_factory):
    with fronts.running(tmp_path_factory.mktemp("front"), demo.grpc, "--max-body-mb", 4, "--body-seconds", 2) as front:
        yield front


@pytest.fixture
def http(front):
    with httpx2.Client(base_url=front.address, timeout=60) as client:
        yield client


def png(size=(64, 64), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def bomb():
    """A PNG of a few bytes that says it has 400 megapixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 6, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9999)) + chunk(b"IEND", b"")
    )
    return base64.b64encode(data).decode()


def body(**given):
    return json.dumps({**SMALL, **given}).encode()


# What is sent, and the field that the answer names. Each is 400.
WRONG = {
    "empty prompt": (body(prompt=""), "prompt"),
    "blank prompt": (body(prompt=" \n\t"), "prompt"),
    "no prompt": (b"{}", "prompt"),
    "null prompt": (body(prompt=None), "prompt"),
    "prompt of numbers": (body(prompt=[1, 2]), "prompt"),
    "prompt of 100k characters": (body(prompt="a " * 50_000), "prompt"),
    "prompt of 2 MB": (body(prompt="x" * 2_000_000), "prompt"),
    "NUL": (body(prompt="a\0b"), "prompt"),
    "ANSI": (body(prompt="\x1b[31mred"), "prompt"),
    "half a surrogate": (b'{"prompt": "\\ud800"}', "prompt"),
    "invalid UTF-8": (b'{"prompt": "\xff\xfe"}', "body"),
    "negative prompt of bytes": (body(negative_prompt={"a": 1}), "negative_prompt"),
    "steps 0": (body(num_inference_steps=0), "num_inference_steps"),
    "steps -1": (body(num_inference_steps=-1), "num_inference_steps"),
    "steps 101": (body(num_inference_steps=101), "num_inference_steps"),
    "steps 2^31": (body(num_inference_steps=2**31), "num_inference_steps"),
    "steps 1.5": (body(num_inference_steps=1.5), "num_inference_steps"),
    "steps true": (body(num_inference_steps=True), "num_inference_steps"),
    "steps of 5000 digits": (b'{"prompt": "x", "num_inference_steps": ' + b"9" * 5000 + b"}", "body"),
    "size 0": (body(size="0x0"), "size"),
    "size odd": (body(size="65x64"), "size"),
    "size over": (body(size="8192x8192"), "size"),
    "size of nothing": (body(size="x"), "size"),
    "size a number": (body(size=256), "size"),
    "size twice": (body(size="64x64", width=64), "size"),
    "size overflow": (body(size="999999999999x64"), "size"),
    "width -8": (b'{"prompt": "x", "width": -8}', "width"),
    "guidance -1": (body(guidance_scale=-1), "guidance_scale"),
    "guidance 1e308": (body(guidance_scale=1e308), "guidance_scale"),
    "guidance NaN": (b'{"prompt": "x", "guidance_scale": NaN}', "body"),
    "guidance Infinity": (b'{"prompt": "x", "guidance_scale": Infinity}', "body"),
    "guidance text": (body(guidance_scale="high"), "guidance_scale"),
    "seed -1": (body(seed=-1), "seed"),
    "seed 2^64": (body(seed=2**64), "seed"),
    "seed 1.5": (body(seed=1.5), "seed"),
    "seeds beyond the last": (body(seed=2**63 - 1, n=2), "seed"),
    "n 0": (body(n=0), "n"),
    "n 11": (body(n=11), "n"),
    "n text": (body(n="many"), "n"),
    "unknown quality": (body(quality="best"), "quality"),
    "unknown sampler": (body(sampler="../../etc/passwd"), "sampler"),
    "unknown schedule": (body(schedule="none"), "schedule"),
    "unknown format": (body(output_format="bmp"), "output_format"),
    "unknown response": (body(response_format="file"), "response_format"),
    "transparent": (body(background="transparent"), "background"),
    "compression": (body(output_compression=50), "output_compression"),
    "style": (body(style="vivid"), "style"),
    "partial images 4": (body(partial_images=4), "partial_images"),
    "stream text": (body(stream="perhaps"), "stream"),
    "unknown field": (body(**{"x" * 70: 1}), "x" * 59 + "…"),
    "tenant of 200 bytes": (body(tenant="x" * 200), "tenant"),
    "deadline 0": (body(deadline_ms=0), "deadline_ms"),
    "pair of three": (body(original_size=[1, 2, 3]), "original_size"),
    "strength alone": (body(strength=0.5), "strength"),
    "mask alone": (body(mask=png()), "mask"),
    "picture a path": (body(init_image="/etc/passwd"), "init_image"),
    "picture an address": (body(init_image="http://169.254.169.254/latest"), "init_image"),
    "picture of nothing": (body(init_image=""), "init_image"),
    "picture of text": (body(init_image=base64.b64encode(b"hello").decode()), "init_image"),
    "picture cut": (body(init_image=png()[:80], strength=0.9), "init_image"),
    "picture a bomb": (body(init_image=bomb()), "init_image"),
    "picture an object": (body(init_image={"file_id": "x"}), "init_image"),
    "list": (b"[1]", "body"),
    "text": (b'"x"', "body"),
    "nothing": (b"", "body"),
    "half": (b'{"prompt": "x"', "body"),
    "deep": (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_body_is_answered_at_once_with_its_field(http, name):
    data, param = WRONG[name]
    began = time.monotonic()
    answer = http.post("/v1/images/generations", content=data, headers=JSON)
    took = time.monotonic() - began
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert {"message", "type", "param", "code"} <= answer.json()["error"].keys()
    assert len(answer.content) < 20_000
    assert took < 1


FORMS = {
    "no boundary": ("multipart/form-data", b"x", 400),
    "cut": ("multipart/form-data; boundary=b", b'--b\r\ncontent-disposition: form-data; name="image"\r\n\r\nx', 400),
    "no name": ("multipart/form-data; boundary=b", b"--b\r\ncontent-disposition: form-data\r\n\r\nx\r\n--b--\r\n", 400),
    "garbage": ("multipart/form-data; boundary=b", b"\0" * 1000, 400),
    "empty": ("multipart/form-data; boundary=b", b"", 400),
    "another type": ("application/x-www-form-urlencoded", b"prompt=x", 415),
    "no type": ("", b"{}", 415),
    "many fields": (
        "multipart/form-data; boundary=b",
        b"".join(b'--b\r\ncontent-disposition: form-data; name="f%d"\r\n\r\nx\r\n' % k for k in range(500))
        + b"--b--\r\n",
        400,
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_broken_form_is_answered(http, name):
    kind, data, status = FORMS[name]
    answer = http.post("/v1/images/edits", content=data, headers={"content-type": kind})
    assert (answer.status_code, "error" in answer.json()) == (status, True), answer.text


@pytest.mark.parametrize("field", ["mask", "image"])
def test_a_bomb_of_a_form_is_refused_by_its_header(http, front, field):
    before = psutil.Process(front.process.pid).memory_info().rss
    pictures = {"image": base64.b64decode(png()), field: base64.b64decode(bomb())}
    answer = http.post("/v1/images/edits", data={"prompt": "x"}, files=pictures)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert psutil.Process(front.process.pid).memory_info().rss - before < 50e6


def test_bodies_of_100_mb_leave_memory_flat_and_the_next_request_works(http, front):
    process = psutil.Process(front.process.pid)
    before = process.memory_info().rss
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", front.port)) as sender:  # says its length
            head = "POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            sender.sendall(f"{head}content-length: 104857600\r\n\r\n".encode())
            assert sender.recv(100).startswith(b"HTTP/1.1 413")

    def endless():
        for _ in range(100):
            yield b"x" * 2**20

    try:  # and one that does not
        answer = http.post("/v1/images/generations", content=endless(), headers=JSON)
        assert answer.status_code == 413
    except httpx2.HTTPError:
        pass  # the answer came while it was still sending
    assert process.memory_info().rss - before < 30e6
    assert http.post("/v1/images/generations", json=SMALL).status_code == 200


def test_slow_senders_are_let_go(http, front):
    with socket.create_connection(("127.0.0.1", front.port)) as sender:
        head = "POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        sender.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
        sender.settimeout(20)
        assert sender.recv(100).startswith(b"HTTP/1.1 408")
    assert http.post("/v1/images/generations", json=SMALL).status_code == 200


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "https://evil.example"}])
def test_other_sites_pages_get_nothing(http, headers):
    assert http.post("/v1/images/generations", json=SMALL, headers=headers).status_code in (400, 403)


def test_without_keys_only_loopback_is_served():
    done = subprocess.run(
        [*TRIPTYCH, "api", "--host", "0.0.0.0", "--port", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--keys" in done.stderr


# With keys.


@pytest.fixture(scope="module")
def guarded(demo, tmp_path_factory):
    """A front that asks for keys, and two of them."""
    folder = tmp_path_factory.mktemp("keys")
    file = folder / "keys.json"
    made = [key(file, "ada"), key(file, "bob")]
    with fronts.running(folder, demo.grpc, "--keys", file, "--origin", "https://friend.example") as front:
        front.file, front.made = file, made
        yield front


def key(file, name, *options):
    return keys("add", name, "--keys", file, *options).strip()


def keys(*arguments):
    done = subprocess.run([*TRIPTYCH, "api", "keys", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def asking(front, secret, **options):
    return httpx2.Client(base_url=front.address, headers={"authorization": f"Bearer {secret}"}, timeout=60, **options)


def test_no_key_no_picture(guarded):
    for headers in (
        {},
        {"authorization": "Bearer x"},
        {"authorization": "Basic x"},
        {"authorization": "Bearer tp-a-b"},
    ):
        answer = httpx2.post(f"{guarded.address}/v1/images/generations", json=SMALL, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert httpx2.get(f"{guarded.address}/healthz").status_code == 200
    basic = httpx2.get(f"{guarded.address}/sdapi/v1/options", auth=("anybody", guarded.made[0]))
    assert basic.status_code == 200


def test_two_keys_never_see_each_other(guarded, url):
    ada, bob = (asking(guarded, secret) for secret in guarded.made)
    mine = ada.post("/v1/jobs", json=LONG, headers={"idempotency-key": "one"}).json()
    until(lambda: ada.get(mine["poll_url"]).json()["status"] == "generating")
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
        assert bob.request(method, mine["poll_url"] + path).status_code == 404
    assert bob.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
    assert bob.post("/sdapi/v1/interrupt").status_code == 200
    other = bob.post("/v1/jobs", json={**SMALL, "num_inference_steps": 2}, headers={"idempotency-key": "one"}).json()
    assert other["id"] != mine["id"]
    assert ada.get(other["poll_url"]).status_code == 404
    refused = bob.post("/v1/images/generations", json={**SMALL, "tenant": "ada"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tenant")
    job = next(line["jobs"][0] for line in guarded.lines() if line["route"] == "/v1/jobs" and line["jobs"])
    assert job == mine["id"]
    assert ada.get(mine["poll_url"]).json()["status"] == "generating"
    ada.delete(mine["poll_url"])
    until(lambda: plain.verb(url, "stats")["running"] == 0)


def test_a_key_has_its_own_limits(guarded):
    carl = asking(guarded, key(guarded.file, "carl", "--under-way", 2, "--a-minute", 1))
    for n, status in ((3, 429), (1, 200), (1, 429)):  # too many at once; the one of this minute; another
        answer = carl.post("/v1/images/generations", json={**SMALL, "n": n})
        assert answer.status_code == status
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert asking(guarded, guarded.made[0]).post("/v1/images/generations", json=SMALL).status_code == 200


def test_a_revoked_key_opens_nothing_from_then_on(guarded):
    eve = key(guarded.file, "eve")
    assert asking(guarded, eve).get("/v1/models").status_code == 200
    id = eve.split("-")[1]
    assert re.search(rf"^{id}  eve .* made ", keys("list", "--keys", guarded.file), re.M)
    keys("revoke", id, "--keys", guarded.file)
    assert asking(guarded, eve).get("/v1/models").status_code == 401
    assert re.search(rf"^{id}  eve .* revoked ", keys("list", "--keys", guarded.file), re.M)


def test_keys_are_nowhere_but_with_their_holders(guarded):
    secrets = [one.rpartition("-")[2] for one in guarded.made]
    page = httpx2.get(f"{guarded.address}/metrics").text
    for text in (guarded.file.read_text(), guarded.log.read_text(), page):
        assert not any(secret in text for secret in secrets)
    assert guarded.file.stat().st_mode & 0o077 == 0
    assert any(line["key"] == guarded.made[0].split("-")[1] for line in guarded.lines())


def test_wrong_keys_are_limited_and_the_service_is_unharmed(guarded):
    with asking(guarded, "tp-nobody-wrong") as guesser:
        answers = [guesser.get("/v1/models").status_code for _ in range(300)]
    assert {*answers} == {401, 429}
    assert answers.count(429) > 100
    assert asking(guarded, guarded.made[0]).get("/v1/models").status_code == 200


def test_a_friends_page_may_ask_and_no_other(guarded):
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    friend, other = (
        httpx2.options(f"{guarded.address}/v1/models", headers={**asked, "origin": origin})
        for origin in ("https://friend.example", "https://evil.example")
    )
    assert friend.headers["access-control-allow-origin"] == "https://friend.example"
    assert other.status_code == 400


# Against the document.

load_all_checks()
NOT_CHECKED = (
    "positive_data_acceptance",  # what hangs on the model, its sizes say, no schema can say
    "ensure_resource_availability",
    "use_after_free",
    "ignored_auth",
    "missing_required_header",
    "unsupported_method",
)
ALL = [check for check in CHECKS.get_all() if check.__name__ not in NOT_CHECKED]


@pytest.fixture(scope="module")
def described(front):
    return schemathesis.openapi.from_url(f"{front.address}/openapi.json")


OPERATIONS = [(path, method.upper()) for path, methods in document("0")["paths"].items() for method in methods]
EXAMPLES = int(os.environ.get("TRIPTYCH_API_EXAMPLES", "10"))


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_breaks_the_document_legal_or_not(described, path, method):
    operation = described[path][method]
    modes = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.one_of(*modes))
    def holds(case):
        case.call_and_validate(checks=ALL)

    holds()
