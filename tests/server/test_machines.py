"""The supervisor on odd machines: paths, owners, hosts, stubs that die. What it runs on is never changed."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from triptych_server import CannotServe, layout
from triptych_server.layout import STUB, TRITON_HOME, Addresses, find_triton, lay_out, run_folder
from triptych_serving import record

from .test_supervisor import echo, image_layout, make_server, processes, regions, run_of, until


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files(home):
    """What could be changed of an installation's files, by path."""
    return {path: (path.stat().st_mode, path.stat().st_mtime_ns) for path in home.rglob("*")}


@pytest.mark.parametrize("name", ["t m p", 't"m"p', "t:m:p", "ñ", "t$(m)p"])
def test_a_temporary_folder_with_an_odd_path_is_not_used(name, tmp_path, monkeypatch):
    odd, plain = tmp_path / name, tmp_path / "plain"
    odd.mkdir()
    plain.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    monkeypatch.setattr(layout, "FALLBACKS", (plain,))
    with run_folder() as run:
        assert run.parent == plain


def test_it_serves_where_the_temporary_folders_path_is_odd_and_leaves_the_installation_as_it_was(tmp_path, monkeypatch):
    odd, plain = tmp_path / 't "m" p', tmp_path / "plain"
    odd.mkdir()
    plain.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    monkeypatch.setattr(layout, "FALLBACKS", (plain,))
    before = files(find_triton())
    with make_server() as server:
        assert echo(server.addresses.grpc) == 7
        assert run_of(plain)
    assert files(find_triton()) == before


def test_without_any_usable_folder_the_variable_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(layout, "FALLBACKS", (tmp_path / 'a "b"',))
    monkeypatch.setattr(layout, "_PLAIN", layout.re.compile("never"))
    with pytest.raises(CannotServe, match=r"no folder for a run's files in .*TMPDIR must name"), run_folder():
        pass


def test_triton_sees_a_stub_of_the_runs_own(tmp_path):
    lay_out(tmp_path)
    stub = tmp_path / layout.BACKEND / STUB
    assert not stub.is_symlink()
    assert stub.stat().st_nlink == 1
    assert stub.stat().st_mode & 0o777 == 0o755
    assert not (tmp_path / layout.BACKEND / "__pycache__").is_symlink()


@pytest.mark.parametrize(
    ("script", "words"), [("echo no such library >&2; exit 3", "no such library"), ("kill -9 $$", "")]
)
def test_a_stub_that_dies_at_its_start_is_noticed_with_its_words(script, words, tmp_path, monkeypatch):
    home = image_layout(tmp_path / "opt")
    stub = home / layout.BACKEND / STUB
    stub.unlink()
    stub.write_text(f"#!/bin/sh\n# libpython{sys.version_info[0]}.{sys.version_info[1]}.so\n{script}\n")
    monkeypatch.setenv(TRITON_HOME, str(home))
    with pytest.raises(CannotServe, match=f"a model's process died at its start: .*{words}"):
        make_server(load_timeout_s=600).start()
    assert stub.stat().st_mode & 0o777 == 0o644
    assert not processes(tmp_path)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("::1", r"host '::1': an IPv6 address; legal: a name or IPv4 address of this machine"),
        ("no-such-host.invalid", r"host 'no-such-host.invalid': .*legal: a name or IPv4 address"),
        ("x" * 70, r"host 'xxx.*legal: a name"),
        ("192.0.2.1", r"port \d+ on 192.0.2.1: Cannot assign"),
    ],
)
def test_a_host_that_cannot_be_served_is_refused_by_name(host, words):
    with pytest.raises(CannotServe, match=words):
        make_server(host=host).begin()


def test_a_name_is_resolved_before_triton_sees_it():
    with make_server(host="localhost") as server:
        assert server.addresses.host == "127.0.0.1"
        assert server.addresses.loopback
        assert echo(server.addresses.grpc) == 7


def test_of_two_servers_that_start_at_once_the_second_names_the_port():
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        taken = Addresses.choose("127.0.0.1", 0, 0, 0, first)
        with pytest.raises(CannotServe, match=f"port {taken.grpc_port} on 127.0.0.1: .*in use.*--grpc-port"):
            Addresses.choose("127.0.0.1", 0, taken.grpc_port, 0, second)
        first.close()
        Addresses.choose("127.0.0.1", 0, taken.grpc_port, 0, second)


def test_a_port_that_is_taken_in_the_last_moment_is_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(layout, "_take", lambda _probes, _held, _host, _name, wanted: wanted or port)
        with pytest.raises(CannotServe, match=f"{port}"):
            make_server().start(30)


CHILD = """
import time
from triptych_serving.record import Record
Record().begin("x")
print("began", flush=True)
time.sleep(99)
"""
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}])
print(child.pid, flush=True)
child.wait()
"""


def test_a_models_process_ends_with_its_parent(tmp_path):
    """Triton's own look at that ends in a process that hangs while it is taken apart."""
    environment = {**os.environ, record.FOLDER: str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        assert parent.stdout.readline() == "began\n"
        parent.kill()
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_the_next_run_ends_what_a_killed_one_left_running(tmp_path):
    abandoned = Path(tempfile.mkdtemp(prefix=layout.RUN_PREFIX, dir=tmp_path))
    stub = abandoned / layout.BACKEND / STUB
    stub.parent.mkdir(parents=True)
    stub.symlink_to("/bin/sleep")
    os.utime(abandoned, (0, 0))
    with subprocess.Popen([str(stub), "99"]) as left:
        until(lambda: str(stub) in psutil.Process(left.pid).cmdline())
        with run_folder():
            assert left.wait(10) == -9
    assert not abandoned.exists()
    assert not regions(abandoned)
