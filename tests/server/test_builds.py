"""Builds by URL: one copy a machine, whole or not there, whoever fetches at once and whoever is killed meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from triptych_demo import demo_build
from triptych_server import CannotServe
from triptych_server.builds import default_store, local
from triptych_serving.manifest import Manifest

from .. import plain
from ..fronts import TRIPTYCH

PARTS = 1 << 16


@pytest.fixture
def build(tmp_path):
    """A copy of the demo's, to be changed."""
    shutil.copytree(demo_build(), tmp_path / "build", ignore=shutil.ignore_patterns("model_repository", ".*"))
    return tmp_path / "build"


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def web(build):
    """The build over HTTP: its address, what was asked for, and what a large file's half waits for."""

    class Handler(SimpleHTTPRequestHandler):
        asked, go_on, halved = Counter(), threading.Event(), threading.Event()

        def __init__(self, *args):
            super().__init__(*args, directory=str(build))

        def copyfile(self, source, outputfile):
            self.asked[self.path] += 1
            large = os.fstat(source.fileno()).st_size > 2 * PARTS
            outputfile.write(source.read(PARTS))
            if large and not self.go_on.is_set():
                outputfile.flush()
                self.halved.set()
                self.go_on.wait()
            shutil.copyfileobj(source, outputfile)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Handler.go_on.set()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    Handler.go_on.set()
    server.shutdown()
    server.server_close()


def whole(folder):
    Manifest.load(folder).verify()
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_path_is_a_folder_and_nothing_is_fetched(build, store):
    assert local(str(build), store) == build
    assert not store.exists()


def test_a_build_is_fetched_once_and_whole(web, store):
    url, asked = web
    told = []
    folder = local(url, store, told.append)
    assert whole(folder) == {"manifest.json", *Manifest.load(folder).artifacts}
    assert told[0].startswith(f"fetching {url}, 0.0")
    before = dict(asked.asked)
    assert {*before.values()} == {1}
    assert local(url, store, told.append) == folder
    assert asked.asked - Counter(before) == {"/manifest.json": 1}
    assert len(told) == 1


def test_builds_share_the_files_that_they_have_in_common(build, store):
    first = local(build.as_uri(), store)
    document = json.loads((build / "manifest.json").read_text())
    document["tools"]["triptych"] = "another"
    (build / "manifest.json").write_text(json.dumps(document))
    second = local(build.as_uri(), store)
    assert second != first
    assert all((first / name).samefile(second / name) for name in Manifest.load(first).artifacts)
    assert whole(second)


def fetching(url, store):
    code = "import sys, pathlib, triptych_server.builds as b; print(b.local(sys.argv[1], pathlib.Path(sys.argv[2])))"
    return subprocess.Popen([sys.executable, "-c", code, url, str(store)], stdout=subprocess.PIPE, text=True)


def test_several_processes_at_once_fetch_one_copy(web, store):
    url, asked = web
    processes = [fetching(url, store) for _ in range(4)]
    folders = {one.communicate(timeout=120)[0].strip() for one in processes}
    assert len(folders) == 1
    assert whole(Path(folders.pop()))
    del asked.asked["/manifest.json"]
    assert {*asked.asked.values()} == {1}


def test_a_kill_in_the_middle_leaves_no_build_and_the_next_goes_on(web, store):
    url, asked = web
    asked.go_on.clear()
    killed = fetching(url, store)
    assert asked.halved.wait(60)
    killed.kill()
    killed.communicate()
    assert list((store / "by-manifest").iterdir()) == []
    asked.go_on.set()
    assert whole(local(url, store))
    assert not [path for path in (store / "drafts").iterdir() if path.suffix != ".lock"]


def test_what_was_cut_off_is_gone_on_with(build, store):
    local(build.as_uri(), store)
    (folder,) = (store / "by-manifest").iterdir()
    shutil.rmtree(folder)
    artifact = Manifest.load(build).artifacts["unet/model.onnx"]["sha256"]
    part = store / "drafts" / artifact
    part.write_bytes((build / "unet/model.onnx").read_bytes()[:1000])
    (store / "files" / artifact).unlink()
    assert whole(local(build.as_uri(), store))
    part.write_bytes(b"something else")
    shutil.rmtree(folder)
    (store / "files" / artifact).unlink()
    with pytest.raises(CannotServe, match=r"unet/model\.onnx: "):
        local(build.as_uri(), store)
    assert whole(local(build.as_uri(), store))  # what was wrong is gone


@pytest.mark.parametrize("change", ["other", "longer", "shorter", "gone"])
def test_a_file_that_is_not_the_manifests_is_named_and_not_kept(build, store, change):
    file = build / "unet/model.onnx"
    data = file.read_bytes()
    file.unlink()
    if change != "gone":
        file.write_bytes({"other": data[:-1] + b"x", "longer": data + b"x", "shorter": data[:-1]}[change])
    with pytest.raises(CannotServe, match=r"unet/model\.onnx"):
        local(build.as_uri(), store)
    assert list((store / "by-manifest").iterdir()) == []
    assert hashlib.sha256(data).hexdigest() not in os.listdir(store / "files")
    file.write_bytes(data)
    assert whole(local(build.as_uri(), store))


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a//b", "./a", "manifest.json", "a\\b", "a\0b", ""])
def test_a_manifest_names_nothing_outside_its_build(build, store, path):
    document = json.loads((build / "manifest.json").read_text())
    document["artifacts"][path] = document["artifacts"]["unet/model.onnx"]
    (build / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(CannotServe, match="build"):
        local(build.as_uri(), store)
    assert list((store / "files").iterdir()) == []


@pytest.mark.parametrize("digest", ["../../x", "0" * 63, "", "G" * 64])
def test_a_content_is_called_by_its_hash_alone(build, store, digest):
    document = json.loads((build / "manifest.json").read_text())
    document["artifacts"]["unet/model.onnx"]["sha256"] = digest
    (build / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(CannotServe, match="SHA-256"):
        local(build.as_uri(), store)


@pytest.mark.parametrize("url", ["nonsense://x/y", "file:///nowhere", "http://user:secret@127.0.0.1:1/x", "s3://"])
def test_what_leads_to_no_build_is_refused_without_its_password(store, url):
    with pytest.raises(CannotServe, match=f"^{url.replace('user:secret@', '')}") as error:
        local(url, store)
    assert "secret" not in str(error.value)


def test_the_store_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_store() == tmp_path / "triptych/builds"
    monkeypatch.setenv("TRIPTYCH_STORE", str(tmp_path / "here"))
    assert default_store() == tmp_path / "here"


@pytest.fixture
def bucket(build, monkeypatch):
    """The build in an S3 server of moto's."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    for path in build.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "models", f"demo/{path.relative_to(build)}")
    yield "s3://models/demo"
    server.stop()


def test_a_build_comes_from_s3(bucket, build, store):
    assert whole(local(bucket, store)) == whole(build)
    with pytest.raises(CannotServe, match="s3://models/none"):
        local("s3://models/none", store)


def test_the_command_serves_what_a_url_leads_to(url, store):
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    command = [*TRIPTYCH, "serve", demo_build().as_uri(), "--store", str(store), *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as serving:
        try:
            address = next(line.split()[1] for line in serving.stdout if line.startswith("gRPC"))
            given = {"prompt": "a fox", "seed": 3, "num_inference_steps": 2}
            assert plain.grpc(address, **given)["image"] == plain.grpc(url, **given)["image"]
        finally:
            serving.terminate()
            told = serving.stderr.read()
    assert f"fetching {demo_build().as_uri()}" in told
    assert serving.returncode == 0
