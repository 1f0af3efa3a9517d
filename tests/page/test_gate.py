"""The gates in front of Gradio: names, origins, proxies, cookies, each session's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from triptych import InvalidRequest
from triptych_page import gate
from triptych_page.app import Options
from triptych_page.gate import gates
from triptych_page.private import MAX_EVENT_BYTES, Private
from triptych_page.store import COOKIE, TOKEN, Store, new_token
from triptych_web.gates import LOOPBACK

PROXY, STRANGER = "10.0.0.7", "192.0.2.1"


class Behind:
    """The application behind the gates: what it was asked."""

    def __init__(self):
        self.asked, self.bodies, self.status = [], [], 200

    async def answer(self, request):
        self.asked.append((request.method, request.url.path))
        self.bodies.append(await request.body())
        told = f"{request.url.scheme} {request.headers.get('x-forwarded-host')} {request.client.host}"
        return HTMLResponse(told, self.status, {"referrer-policy": "unsafe-url"})


@pytest.fixture
def behind():
    return Behind()


@pytest.fixture
def store():
    made = Store()
    yield made
    made.close()


def client_of(
    behind, store=None, *, hosts=LOOPBACK, address=STRANGER, cookie=None, base="http://localhost:7860", **options
):
    passed = gates(hosts=hosts, **options)
    if store is not None:
        own = {"store": store, "user_of": lambda cookies: cookies.get("user"), "login": False}

        async def news(session, _):
            return JSONResponse({"seen": session.key})

        passed.append(Middleware(Private, **own, max_upload_bytes=1000, own={"news": news}))
    route = Route("/{path:path}", behind.answer, methods=["GET", "POST", "OPTIONS"])
    app = Starlette(routes=[route], middleware=passed)
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, client=(address, 1)),
        base_url=base,
        cookies={COOKIE: cookie} if cookie else None,
    )


async def test_a_new_browser_gets_a_token_that_no_script_reads(behind):
    cookie = (await client_of(behind).get("/")).headers["set-cookie"]
    assert re.match(rf"{COOKIE}=[A-Za-z0-9_-]{{43}};", cookie)
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" not in cookie


async def test_a_browser_keeps_its_token(behind):
    assert "set-cookie" not in (await client_of(behind, cookie=new_token()).get("/")).headers
    assert "set-cookie" in (await client_of(behind, cookie="guessed").get("/")).headers


async def test_behind_tls_the_token_is_for_tls_only(behind):
    asked = client_of(behind, hosts=None, root_path="/triptych", base="https://example.org")
    cookie = (await asked.get("/triptych/")).headers["set-cookie"]
    assert "Secure" in cookie
    assert "Path=/triptych;" in cookie


def test_tokens_are_what_is_let_in():
    assert TOKEN.fullmatch(new_token())
    assert new_token() != new_token()


async def test_only_the_page_itself_sets_a_cookie(behind):
    assert "set-cookie" not in (await client_of(behind).get("/assets/index.js")).headers


async def test_our_headers_win(behind):
    headers = (await client_of(behind).get("/")).headers
    assert headers["referrer-policy"] == "same-origin"
    assert "connect-src 'self'" in headers["content-security-policy"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "localhost.evil.example", ""])
async def test_another_sites_name_for_this_page_is_refused(behind, host):
    answer = await client_of(behind).get("/", headers={"host": host})
    assert answer.status_code == 400
    assert "content-security-policy" in answer.headers
    assert behind.asked == []


@pytest.mark.parametrize("host", ["localhost:1", "[::1]:80", "127.0.0.1", "LOCALHOST"])
async def test_names_of_loopback_are_served(behind, host):
    assert (await client_of(behind).get("/", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/login", "/logout", "/gradio_api/upload", "/config"])
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "http://localhost:7860.evil.example"]
)
async def test_what_another_site_sends_is_refused(behind, store, method, path, origin):
    answer = await client_of(behind, store, cookie=new_token()).request(method, path, headers={"origin": origin})
    assert answer.status_code == 403
    assert "--trusted-proxy" in answer.text
    assert behind.asked == []


async def test_what_the_page_itself_sends_passes(behind):
    answer = await client_of(behind).post("/login", headers={"origin": "http://LOCALHOST:7860"})
    assert answer.status_code == 200


FORWARDED = {"x-forwarded-host": "example.org", "x-forwarded-proto": "https", "x-forwarded-for": "198.51.100.9"}


async def test_a_proxy_that_nobody_named_is_not_believed(behind):
    for address in (STRANGER, "127.0.0.1"):
        asked = client_of(behind, hosts=None, address=address, proxies=(PROXY,))
        answer = await asked.get("/", headers=FORWARDED)
        assert answer.text == f"http None {address}"
        assert "Secure" not in answer.headers["set-cookie"]
        foreign = {**FORWARDED, "origin": "https://example.org"}
        assert (await asked.post("/login", headers=foreign)).status_code == 403


@pytest.mark.parametrize("named", [PROXY, "10.0.0.0/8"])
async def test_a_proxy_that_the_operator_named_is_believed(behind, named):
    asked = client_of(behind, hosts=None, address=PROXY, proxies=(named,))
    answer = await asked.get("/", headers=FORWARDED)
    assert answer.text == "https example.org 198.51.100.9"
    assert "Secure" in answer.headers["set-cookie"]
    sent = await asked.post("/login", headers={**FORWARDED, "origin": "https://example.org"})
    assert sent.status_code == 200


async def test_a_link_logs_nobody_out(behind):
    asked = client_of(behind, root_path="/triptych")
    for path in ("/logout", "/logout/", "/triptych/logout", "/triptych/triptych/logout"):
        answer = await asked.get(path)
        assert '<form method="post">' in answer.text
    assert behind.asked == []
    await asked.post("/logout")
    assert behind.asked == [("GET", "/logout")]


async def test_an_address_that_guesses_is_refused_before_anything_is_hashed(behind, monkeypatch):
    monkeypatch.setattr(gate, "LOGINS_A_MINUTE", 3)
    behind.status = 400
    asked = client_of(behind, hosts=None, proxies=(PROXY,), address=PROXY)
    answers = [await asked.post("/login", headers={"x-forwarded-for": STRANGER}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [400, 400, 400, 429]
    assert answers[-1].headers["retry-after"]
    assert len(behind.asked) == 3
    behind.status = 200
    assert (await asked.post("/login", headers={"x-forwarded-for": "198.51.100.9"})).status_code == 200


@pytest.mark.parametrize(
    "asked",
    [
        "file=https://evil.example/x",
        "file=HTTP://evil.example/x",
        "file=%68ttps://evil.example/x",
        "proxy=https://x.hf.space/",
        "token",
        "call/x/y",
        "stream/a/b/c/playlist.m3u8",
        "deep_link",
        "dev/reload",
        "vibe-code",
    ],
)
async def test_what_the_page_does_not_ask_for_is_not_there(behind, store, asked):
    for prefix in ("", "/triptych", "/triptych/triptych"):
        caller = client_of(behind, store, cookie=new_token(), root_path="/triptych")
        assert (await caller.get(f"{prefix}/gradio_api/{asked}")).status_code == 404
    assert behind.asked == []


async def join(caller, **event):
    return (await caller.post("/gradio_api/queue/join", json=event)).status_code


@pytest.mark.parametrize(
    "path", ["https://evil.example/x.png", " ftp://evil.example/x.png", "FILE:///etc/passwd", "/etc/passwd"]
)
async def test_no_event_names_a_file_that_is_not_the_sessions(behind, store, path):
    token = new_token()
    caller, session = client_of(behind, store, cookie=token), store.session(token)
    anothers = store.session(new_token()).folder / "x.png"
    for named in (path, str(anothers), f"{session.folder}/../{anothers.parent.name}/x.png"):
        assert await join(caller, data=[[{"a": {"path": named}}]]) == 400
        body = json.dumps({"data": [{"path": named}]}).replace("/", "\\u002f")
        assert (await caller.post("/gradio_api/queue/join", content=body)).status_code == 400
    assert await join(caller, data=[{"path": str(session.folder / "x"), "url": "data:image/png;base64,aa"}]) == 400
    assert behind.asked == []


async def test_an_ordinary_event_passes_as_it_is(behind, store):
    token = new_token()
    own = str(store.session(token).folder / "x.png")
    body = json.dumps({"data": ["see https://example.org", {"path": own, "url": "http://localhost/x"}]}).encode()
    answer = await client_of(behind, store, cookie=token).post("/gradio_api/queue/join", content=body)
    assert answer.status_code == 200
    assert behind.bodies == [body]


async def test_an_event_that_is_too_large_or_no_json_is_refused(behind, store):
    caller = client_of(behind, store, cookie=new_token())
    deep = b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for body, status in ((b"x" * (MAX_EVENT_BYTES + 1), 413), (b"https://{", 400), (b"[]", 400), (deep, 400)):
        kinds = ("application/json", "multipart/form-data; boundary=x")
        for kind in kinds:
            sent = await caller.post("/gradio_api/run/predict", content=body, headers={"content-type": kind})
            assert sent.status_code == status
    assert behind.asked == []


async def test_without_a_sessions_cookie_nothing_is_asked_or_sent(behind, store):
    stranger = client_of(behind, store)
    for path in ("run/predict", "queue/join", "upload", "cancel"):
        answer = await stranger.post(f"/gradio_api/{path}", json={})
        assert answer.status_code == 403
        assert "cookie" in answer.json()["error"]
    for path in ("queue/data?session_hash=a", "heartbeat/a", "upload_progress?upload_id=a", "file=/etc/hostname"):
        assert (await stranger.get(f"/gradio_api/{path}")).status_code == 403
    assert behind.asked == []


async def test_another_sessions_events_do_not_open(behind, store):
    mine = client_of(behind, store, cookie=new_token())
    yours = httpx.AsyncClient(transport=mine._transport, base_url=mine.base_url, cookies={COOKIE: new_token()})
    assert await join(mine, session_hash="abc", data=[]) == 200
    behind.asked.clear()
    assert await join(yours, session_hash="abc", data=[]) == 404
    for path in ("queue/data?session_hash=abc", "heartbeat/abc", "queue/data?session_hash=x&session_hash=abc"):
        assert (await yours.get(f"/gradio_api/{path}")).status_code == 404
    for path in ("cancel", "reset", "run/predict"):
        assert (await yours.post(f"/gradio_api/{path}", json={"session_hash": "abc"})).status_code == 404
    assert behind.asked == []
    for path in ("queue/data?session_hash=abc", "heartbeat/abc"):
        assert (await mine.get(f"/gradio_api/{path}")).status_code == 200


async def test_news_are_told_to_the_session_that_asks(behind, store):
    tokens = [new_token() for _ in range(2)]
    told = [(await client_of(behind, store, cookie=token).get("/gradio_api/news")).json()["seen"] for token in tokens]
    assert told == [store.session(token).key for token in tokens]
    assert (await client_of(behind, store).get("/gradio_api/news")).status_code == 403


async def test_another_login_in_the_same_browser_does_not_open_them_either(behind, store):
    caller = client_of(behind, store, cookie=new_token())
    caller.cookies["user"] = "ada"
    assert await join(caller, session_hash="abc", data=[]) == 200
    caller.cookies["user"] = "bob"
    assert await join(caller, session_hash="abc", data=[]) == 404


async def test_a_sessions_file_is_had_by_its_own_address_and_by_nobody_else(behind, store):
    token = new_token()
    session = store.session(token)
    mine, yours, login = (client_of(behind, store, cookie=cookie) for cookie in (token, new_token(), token))
    login.cookies["user"] = "ada"
    for name, kind, shown in (
        ("a.png", "image/png", "inline"),
        ("a.txt", "application/octet-stream", "attachment"),
        ("a.svg", "application/octet-stream", "attachment"),
        ("a.html", "application/octet-stream", "attachment"),
    ):
        path = session.folder / name
        path.write_bytes(b"bytes")
        answer = await mine.get(f"/gradio_api/file={path}")
        assert (answer.status_code, answer.content) == (200, b"bytes")
        assert answer.headers["content-type"] == kind
        assert answer.headers["content-disposition"].startswith(shown)
        for other in (yours, login):
            assert (await other.get(f"/gradio_api/file={path}")).status_code == 404
        gone = f"{store.session(new_token()).folder}/../{session.folder.name}/{name}"
        assert (await yours.get(f"/gradio_api/file={gone}")).status_code == 404


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"host": "0.0.0.0"}, "host"),
        ({"certificate": Path("c.pem")}, "tls"),
        ({"root_path": "triptych"}, "root_path"),
        ({"root_path": "/triptych/"}, "root_path"),
        ({"allow_hosts": ("*",)}, "allow_host"),
        ({"allow_hosts": ("a*.example",)}, "allow_host"),
        ({"trusted_proxies": ("proxy.example",)}, "trusted_proxy"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, field):
    with pytest.raises(InvalidRequest) as error:
        Options(**options).check()
    assert error.value.field == field


def test_a_login_may_be_served_anywhere():
    assert Options(host="0.0.0.0", users=Path("users")).check() is None  # it raises what is wrong
