"""Who gets in, and what the page reads: asked over plain HTTP, as somebody would who means harm."""

from __future__ import annotations

from collections.abc import Iterator
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
    process, address = begin_page(demo.grpc, "--users", str(users), "--root-path", "/triptych")
    yield address.removesuffix("triptych/")
    process.terminate()
    process.wait(20)


@pytest.fixture
def caller(address: str) -> Iterator[httpx.Client]:
    """A caller of the open page, with a session."""
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


def drop(caller: httpx.Client, path: str) -> httpx.Response:
    event = event_of(caller.get("/config").json(), "tp-drop", "upload")
    file = {"path": path, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
    body = {"fn_index": event, "data": [file], "session_hash": "test"}
    return caller.post("/gradio_api/run/predict", json=body)


def test_only_uploaded_files_are_read(caller, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    with secret.open("rb") as file:
        (uploaded,) = caller.post("/gradio_api/upload", files={"files": ("x.png", file)}).json()
    assert drop(caller, uploaded).status_code == 200
    for path in (str(secret), "/etc/hostname", f"{uploaded}/../../../secret.png"):
        assert drop(caller, path).status_code == 500
    assert drop(caller, "https://localhost/x.png").status_code == 400


def test_no_file_of_this_machine_is_served(caller):
    for path in ("/etc/hostname", "/proc/self/environ", "https://localhost/x"):
        assert caller.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_without_a_session_nothing_is_begun(address):
    with httpx.Client(base_url=address, timeout=30) as stranger:
        config = stranger.get("/config").json()
        (load,) = [
            event["id"] for event in config["dependencies"] if any(name == "load" for _, name in event["targets"])
        ]
        answer = stranger.post("/gradio_api/run/predict", json={"fn_index": load, "data": [], "session_hash": "x"})
    assert answer.status_code == 500
    assert "cookie" in answer.text


def test_a_login_is_asked_for(closed):
    with httpx.Client(base_url=closed, timeout=30) as client:
        assert client.get("/config").status_code == 401
        assert client.post("/gradio_api/run/predict", json={"fn_index": 0, "data": []}).status_code == 401
        assert client.post("/gradio_api/upload", files={"files": ("x.png", b"x")}).status_code == 401
        assert client.post("/login", data={"username": "ada", "password": "wrong horse"}).status_code == 400
        assert client.post("/login", data={"username": "ada", "password": "correct horse"}).status_code == 200
        assert client.get("/config").status_code == 200


def test_behind_a_proxy_the_page_knows_its_place(closed):
    with httpx.Client(base_url=closed, timeout=30) as client:
        client.post("/login", data={"username": "ada", "password": "correct horse"})
        answer = client.get("/", headers={"X-Forwarded-Host": "example.org", "X-Forwarded-Proto": "https"})
    assert "https://example.org/triptych" in answer.text
    assert "Path=/triptych" in answer.headers["set-cookie"]
    assert "Secure" in answer.headers["set-cookie"]


def test_a_page_for_all_without_a_login_is_refused():
    with pytest.raises(AssertionError, match="ended before it began"):
        begin_page("localhost:8001", "--host", "0.0.0.0")
