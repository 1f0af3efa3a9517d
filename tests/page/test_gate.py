"""The gate in front of Gradio: cookies, names, no way out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from triptych import InvalidRequest
from triptych_page.app import Options
from triptych_page.gate import LOOPBACK, MAX_EVENT_BYTES, Gate, host_of
from triptych_page.store import COOKIE, TOKEN, new_token


class Behind:
    """The application behind the gate: what it was asked, and the body it read."""

    def __init__(self):
        self.paths, self.bodies = [], []

    async def __call__(self, scope, receive, send):
        self.paths.append(scope["path"])
        self.bodies.append((await receive()).get("body", b"") if scope["method"] == "POST" else b"")
        headers = [(b"content-type", b"text/html"), (b"referrer-policy", b"unsafe-url")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"page"})


async def ask(gate, path="/", *, method="GET", body=b"", **headers):
    sent = []
    pieces = [body[k : k + 1000] for k in range(0, len(body), 1000)] or [b""]

    async def receive():
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)

    given = {"host": "localhost:7860", **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
    await gate({"type": "http", "method": method, "path": path, "headers": raw}, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"])


@pytest.fixture
def behind():
    return Behind()


@pytest.fixture
def gate(behind):
    return Gate(behind, hosts=LOOPBACK, secure=False)


async def test_a_new_browser_gets_a_token_that_no_script_reads(gate):
    _, headers = await ask(gate)
    cookie = headers[b"set-cookie"].decode()
    assert re.match(rf"{COOKIE}=[A-Za-z0-9_-]{{43}};", cookie)
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie


async def test_a_browser_keeps_its_token(gate):
    _, headers = await ask(gate, cookie=f"other=1; {COOKIE}={new_token()}")
    assert b"set-cookie" not in headers
    _, headers = await ask(gate, cookie=f"{COOKIE}=guessed")
    assert b"set-cookie" in headers


async def test_behind_tls_the_token_is_for_tls_only(behind):
    _, headers = await ask(Gate(behind, hosts=None, secure=True, root_path="/triptych"))
    assert b"Secure" in headers[b"set-cookie"]
    assert b"Path=/triptych;" in headers[b"set-cookie"]
    _, headers = await ask(Gate(behind, hosts=None, secure=False), x_forwarded_proto="https")
    assert b"Secure" in headers[b"set-cookie"]


def test_tokens_are_what_is_let_in():
    assert TOKEN.fullmatch(new_token())
    assert new_token() != new_token()


async def test_only_the_page_itself_sets_a_cookie(gate):
    _, headers = await ask(gate, "/assets/index.js")
    assert b"set-cookie" not in headers


async def test_our_headers_win(gate):
    _, headers = await ask(gate)
    assert headers[b"referrer-policy"] == b"no-referrer"
    assert b"connect-src 'self'" in headers[b"content-security-policy"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "localhost.evil.example", ""])
async def test_another_sites_name_for_this_page_is_refused(gate, behind, host):
    status, _ = await ask(gate, host=host)
    assert status == 421
    assert behind.paths == []


@pytest.mark.parametrize(
    ("header", "name"),
    [("localhost:1", "localhost"), ("[::1]:80", "::1"), ("127.0.0.1", "127.0.0.1"), ("LOCALHOST", "localhost")],
)
async def test_hosts_are_read_without_their_port(gate, header, name):
    assert host_of(header) == name
    assert (await ask(gate, host=header))[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=https://evil.example/x",
        "/gradio_api/file=HTTP://evil.example/x",
        "/gradio_api/file=%68ttps://evil.example/x",
        "/gradio_api/proxy=https://x.hf.space/",
    ],
)
async def test_there_is_no_way_out_by_address(gate, behind, path):
    status, _ = await ask(gate, path)
    assert status == 404
    assert behind.paths == []


@pytest.mark.parametrize(
    "event",
    [
        {"data": [{"path": "https://evil.example/x.png", "meta": {"_type": "gradio.FileData"}}]},
        {"data": [[{"a": {"path": " ftp://evil.example/x.png"}}]]},
        {"data": [{"path": "FILE:///etc/passwd"}]},
    ],
)
async def test_no_event_names_a_file_by_its_address(gate, behind, event):
    for body in (
        json.dumps(event),
        json.dumps(event).replace("/", "\\/"),
    ):
        status, _ = await ask(gate, "/gradio_api/queue/join", method="POST", body=body.encode())
        assert status == 400
    assert behind.bodies == []


async def test_an_ordinary_event_passes_as_it_is(gate, behind):
    body = json.dumps(
        {"data": ["see https://example.org", {"path": "/tmp/x.png", "url": "http://localhost/x"}]}
    ).encode()
    status, _ = await ask(gate, "/gradio_api/queue/join", method="POST", body=body)
    assert status == 200
    assert behind.bodies == [body]


async def test_an_event_that_is_too_large_or_no_json_is_refused(gate):
    assert (await ask(gate, "/x", method="POST", body=b"x" * (MAX_EVENT_BYTES + 1)))[0] == 413
    assert (await ask(gate, "/x", method="POST", body=b"https://{"))[0] == 400
    deep = b'["http://",' + b"[" * 100_000 + b"]" * 100_000 + b"]"
    assert (await ask(gate, "/x", method="POST", body=deep))[0] in (200, 400)


async def test_uploads_pass_unread(gate):
    kind = {"content_type": "multipart/form-data; boundary=x"}
    assert (await ask(gate, "/gradio_api/upload", method="POST", body=b"https://", **kind))[0] == 200


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"host": "0.0.0.0"}, "host"),
        ({"certificate": Path("c.pem")}, "tls"),
        ({"root_path": "triptych"}, "root_path"),
        ({"root_path": "/triptych/"}, "root_path"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, field):
    with pytest.raises(InvalidRequest) as error:
        Options(**options).check()
    assert error.value.field == field


def test_a_login_may_be_served_anywhere():
    Options(host="0.0.0.0", users=Path("users")).check()
