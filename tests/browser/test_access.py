"""Who gets in, and what the page reads: asked over plain HTTP, as somebody would who means harm."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from triptych_page.store import COOKIE, new_token
from triptych_page.users import add_user

from .conftest import begin_page


@pytest.fixture(scope="module")
def closed(demo, tmp_path_factory) -> Iterator[str]:
    """The address of a page that asks for a login."""
    users = tmp_path_factory.mktemp("users") / "users"
    add_user(users, "ada", "correct horse")
    process, address = begin_page(
        demo.grpc, "--users", str(users), "--root-path", "/triptych", "--trusted-proxy", "127.0.0.2"
    )
    yield address.removesuffix("triptych/")
    process.terminate()
    process.wait(20)


@pytest.fixture
def caller(address: str) -> Iterator[httpx.Client]:
    """A caller of the open page, with a session."""
    with httpx.Client(base_url=address, cookies={COOKIE: new_token()}, timeout=30) as client:
        yield client


@pytest.fixture
def png(tmp_path: Path) -> Path:
    """A picture outside of the page's folder."""
    path = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(path)
    return path


@pytest.fixture
def stranger(address: str) -> Iterator[httpx.Client]:
    """Somebody else, with a session of their own."""
    with httpx.Client(base_url=address, cookies={COOKIE: new_token()}, timeout=30) as client:
        yield client


def event_of(config: dict[str, Any], elem_id: str, name: str) -> int:
    """The number of the event that a component has."""
    (component,) = [part["id"] for part in config["components"] if part["props"].get("elem_id") == elem_id]
    return next(
        dependency["id"]
        for dependency in config["dependencies"]
        if [component, name] in map(list, dependency["targets"])
    )


def upload(caller: httpx.Client, name: str, data: bytes) -> str:
    answer = caller.post("/gradio_api/upload", files={"files": (name, data)})
    answer.raise_for_status()
    (path,) = answer.json()
    return path


def drop(caller: httpx.Client, path: str) -> httpx.Response:
    event = event_of(caller.get("/config").json(), "tp-drop", "upload")
    file = {"path": path, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
    return caller.post("/gradio_api/run/predict", json={"fn_index": event, "data": [file], "session_hash": new_token()})


def login(client: httpx.Client, password: str, **headers: str) -> httpx.Response:
    return client.post("/login", data={"username": "ada", "password": password}, headers=headers)


def test_only_the_sessions_own_uploads_are_read(caller, stranger, png):
    uploaded = upload(caller, "x.png", png.read_bytes())
    assert drop(caller, uploaded).status_code == 200
    for path in (str(png), "/etc/hostname", f"{uploaded}/../../../../secret.png", "https://localhost/x.png"):
        assert drop(caller, path).status_code == 400
    assert drop(stranger, uploaded).status_code == 400


def test_an_upload_opens_for_its_session_alone_and_only_pictures_are_shown(caller, stranger, address, png):
    picture, text = upload(caller, "x.png", png.read_bytes()), upload(caller, "x.txt", b"<script>alert(1)</script>")
    assert caller.get(f"/gradio_api/file={picture}").content == png.read_bytes()
    assert caller.get(f"/gradio_api/file={picture}").headers["content-disposition"].startswith("inline")
    assert caller.get(f"/gradio_api/file={text}").headers["content-disposition"].startswith("attachment")
    with httpx.Client(base_url=address) as nobody:
        for path in (picture, text):
            assert stranger.get(f"/gradio_api/file={path}").status_code == 404
            assert nobody.get(f"/gradio_api/file={path}").status_code == 403
        assert nobody.post("/gradio_api/upload", files={"files": ("x.png", b"x")}).status_code == 403


def test_an_upload_that_is_too_large_is_refused(caller):
    assert caller.post("/gradio_api/upload", files={"files": ("x.png", bytes(33 * 2**20))}).status_code == 413


def test_another_sessions_picture_cannot_be_had_by_its_address(visitor, another):
    visitor.ask("a 3d render of a red apple", seed=70, steps=2)
    visitor.generate()
    visitor.wait_for(1)
    source = visitor.pictures().first.locator("img").get_attribute("src")
    assert visitor.page.request.get(source).headers["content-type"] == "image/png"
    assert another.page.request.get(source).status == 404


def test_another_sessions_events_cannot_be_read(visitor, another):
    with visitor.page.expect_request(lambda request: "/queue/data" in request.url) as asked:
        visitor.ask("a 3d render of a red apple", seed=71, steps=2)
        visitor.generate()
    assert another.page.request.get(asked.value.url).status == 404


def test_no_file_of_this_machine_is_served(caller):
    for path in ("/etc/hostname", "/proc/self/environ", "https://localhost/x"):
        assert caller.get(f"/gradio_api/file={path}").status_code == 404


def test_without_a_session_nothing_is_begun(address):
    with httpx.Client(base_url=address, timeout=30) as nobody:
        config = nobody.get("/config").json()
        (load,) = [
            event["id"] for event in config["dependencies"] if any(name == "load" for _, name in event["targets"])
        ]
        answer = nobody.post("/gradio_api/run/predict", json={"fn_index": load, "data": [], "session_hash": "x"})
    assert answer.status_code == 403
    assert "cookie" in answer.json()["error"]


def test_a_login_is_asked_for(closed):
    with httpx.Client(base_url=closed, cookies={COOKIE: new_token()}, timeout=30) as client:
        assert client.get("/config").status_code == 401
        assert client.post("/gradio_api/run/predict", json={"fn_index": 0, "data": []}).status_code == 401
        assert client.post("/gradio_api/upload", files={"files": ("x.png", b"x")}).status_code == 401
        assert client.get("/gradio_api/heartbeat/x").status_code == 401
        assert login(client, "wrong horse").status_code == 400
        assert login(client, "correct horse").status_code == 200
        assert client.get("/config").status_code == 200


def test_another_site_logs_nobody_in_and_nobody_out(closed):
    foreign = {"origin": "https://evil.example"}
    with httpx.Client(base_url=closed, cookies={COOKIE: new_token()}, timeout=30) as client:
        assert login(client, "correct horse", **foreign).status_code == 403
        assert login(client, "correct horse").status_code == 200
        assert client.post("/gradio_api/upload", files={"files": ("x.png", b"x")}, headers=foreign).status_code == 403
        client.get("/logout", headers={"sec-fetch-site": "cross-site"})
        assert client.post("/logout", headers=foreign).status_code == 403
        assert client.get("/config").status_code == 200
        client.post("/logout", headers={"origin": closed.rstrip("/")})
        assert client.get("/config").status_code == 401


def test_who_logs_out_is_asked_in_the_browser(browser, closed):
    # The page's own address is under a sub-path of a proxy; what it answers there is asked for here directly.
    context = browser.new_context()
    try:
        page = context.new_page()
        page.request.post(f"{closed}login", form={"username": "ada", "password": "correct horse"})
        page.goto(f"{closed}logout")
        assert page.request.get(f"{closed}config").status == 200
        with page.expect_response(lambda answer: answer.request.method == "POST") as pressed:
            page.get_by_role("button", name="Log out").click()
        assert pressed.value.status == 302
        assert page.request.get(f"{closed}config").status == 401
    finally:
        context.close()


def test_a_right_login_passes_while_forty_wrong_ones_are_tried(closed):
    """Each has to wait for those before it, not for a pause: none of the other names is locked, nor is the address."""
    with httpx.Client(base_url=closed, timeout=30) as client, ThreadPoolExecutor(40) as pool:
        form = [{"username": f"eve{k}", "password": "wrong horse"} for k in range(40)]
        wrong = [pool.submit(httpx.post, f"{closed}login", data=given, timeout=30) for given in form]
        assert login(client, "correct horse").status_code == 200
    assert {answer.result().status_code for answer in wrong} == {400}


def test_a_proxy_that_nobody_named_is_not_believed(closed):
    with httpx.Client(base_url=closed, timeout=30) as client:
        login(client, "correct horse")
        answer = client.get("/", headers={"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"})
    assert "evil.example" not in answer.text
    assert "Secure" not in answer.headers["set-cookie"]


def test_behind_a_proxy_the_page_knows_its_place(closed):
    named = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=closed, transport=named, timeout=30) as client:
        login(client, "correct horse")
        answer = client.get("/", headers={"X-Forwarded-Host": "example.org", "X-Forwarded-Proto": "https"})
    assert "https://example.org/triptych" in answer.text
    assert "Path=/triptych" in answer.headers["set-cookie"]
    assert "Secure" in answer.headers["set-cookie"]


def test_a_page_for_all_without_a_login_is_refused():
    with pytest.raises(AssertionError, match="ended before it began"):
        begin_page("localhost:8001", "--host", "0.0.0.0")
