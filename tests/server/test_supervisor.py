"""The supervisor on a real Triton: starts, crashes, drains, and what it leaves behind (nothing)."""

import os
import queue
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException

from triptych_server import CannotServe, Server, State, supervisor
from triptych_server.layout import SHM, STUB, TRITON_HOME, environment, find_triton
from triptych_server.triton import STACK_BYTES, stack_limits

REPOSITORY = Path(__file__).parent / "repository"
SERVE = (
    "import shutil, typer; from triptych_server import supervisor; from triptych_server.commands.serve import serve; "
    "supervisor.prepare = lambda builds, to, **_: shutil.copytree(builds[0], to); typer.run(serve)"
)


@pytest.fixture(autouse=True)
def _own_temp(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def events():
    return queue.Queue()


@pytest.fixture
def server(events):
    server = make_server(on_event=events.put)
    yield server.start(30)
    server.kill()


def copy(builds, repository):
    """What is served is its own repository."""
    shutil.copytree(builds[0], repository)


def make_server(build=REPOSITORY, **options):
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    return Server(build, **{**ports, "prepare": copy, **options})


def until(condition, limit_s=10):
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return value


def wait_event(events, state, limit_s=10):
    while (event := events.get(timeout=limit_s)).state != state:
        pass
    return event


def processes(folder):
    """Living processes of the runs under a folder (a zombie has no command line)."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if "triton" in line and f"{folder}/triptych-run-" in line:
            found.append(process)
    return found


def one(folder, word):
    (process,) = [p for p in processes(folder) if word in " ".join(p.info["cmdline"])]
    return process


def regions(run):
    return list(SHM.glob(f"{run.name}_*"))


def run_of(folder):
    (run,) = folder.glob("triptych-run-*")
    return run


def nothing_left(folder, run):
    return not processes(folder) and not regions(run) and not run.exists()


def echo(url):
    with grpc.InferenceServerClient(url) as client:
        tensor = grpc.InferInput("value", [1], "INT32")
        tensor.set_data_from_numpy(np.array([7], np.int32))
        return int(client.infer("echo", [tensor]).as_numpy("value")[0])


@contextmanager
def in_flight(url, folder):
    """A request that waits at the gate: its future and the file that lets it pass."""
    gate = folder / "gate"
    with grpc.InferenceServerClient(url) as client, ThreadPoolExecutor(1) as pool:
        tensor = grpc.InferInput("path", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([str(gate).encode()], dtype=object))
        future: Future = pool.submit(client.infer, "gate", [tensor], client_timeout=60)
        until(gate.with_suffix(".taken").exists)
        yield future, gate


@contextmanager
def serve_process(build=REPOSITORY):
    command = [sys.executable, "-c", SERVE, str(build), "--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def grpc_line(process):
    return process.stdout.readline().split()[1]


def slow_build(folder, body):
    """A build with one model more; `body` is what its `initialize` does."""
    build = shutil.copytree(REPOSITORY, folder / "build")
    model = shutil.copytree(build / "echo", build / "extra") / "1/model.py"
    model.write_text(f"{model.read_text()}\n    def initialize(self, args):\n        {body}\n")
    return build


def test_serves_on_loopback_and_stops_without_a_trace(server, tmp_path):
    assert server.state == State.READY
    assert echo(server.addresses.grpc) == 7
    run = run_of(tmp_path)
    assert run.stat().st_mode & 0o777 == 0o700
    assert len(regions(run)) == 2
    listening = [c for c in one(tmp_path, "bin/tritonserver").net_connections() if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}
    ports = {server.addresses.http_port, server.addresses.grpc_port, server.addresses.metrics_port}
    assert {c.laddr.port for c in listening} == ports
    server.stop()
    assert server.failure is None
    assert nothing_left(tmp_path, run)


def test_models_run_this_interpreter_with_its_packages(server, tmp_path):
    with in_flight(server.addresses.grpc, tmp_path) as (future, gate):
        gate.touch()
        answer = future.result(10).as_numpy("python")[0].decode()
    assert answer.startswith(f"{sys.prefix} {sys.version}")
    assert "triptych_serving" in answer


def image_layout(home):
    """The wheel's Triton in the folders of NVIDIA's images: one stub, beside the backend."""
    wheel = find_triton()
    backend = home / "backends/python"
    backend.mkdir(parents=True)
    stub = wheel / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}" / STUB
    for source in (*(wheel / "backends/python").iterdir(), stub):
        (backend / source.name).symlink_to(source)
    for folder in ("bin", "caches"):
        (home / folder).symlink_to(wheel / folder)
    return home


def test_a_triton_of_an_image_is_run_where_the_environment_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv(TRITON_HOME, str(image_layout(tmp_path / "opt")))
    with make_server() as server:
        assert echo(server.addresses.grpc) == 7
        assert one(tmp_path, "bin/tritonserver").cmdline()[0] == str(tmp_path / "opt/bin/tritonserver")


def test_a_triton_that_is_not_there_or_for_another_python_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(TRITON_HOME, str(tmp_path))
    with pytest.raises(CannotServe, match=f"{tmp_path} holds no Triton; {TRITON_HOME}"):
        find_triton()
    monkeypatch.delenv(TRITON_HOME)
    other = image_layout(tmp_path / "opt")
    monkeypatch.setenv(TRITON_HOME, str(other))
    stub = other / "backends/python" / STUB
    stub.unlink()
    stub.write_bytes(b"libpython3.1.so.1.0")
    with pytest.raises(CannotServe, match="has no stub for Python"):
        find_triton()


def test_quantiles_of_whole_requests_are_published(server):
    echo(server.addresses.grpc)
    with urllib.request.urlopen(server.addresses.metrics) as page:
        assert 'nv_inference_request_summary_us{model="echo",version="1",quantile="0.99"}' in page.read().decode()


def test_onnx_runtime_reports_to_nobody_unless_asked_to(tmp_path, monkeypatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    assert environment(tmp_path, 0)["ORT_DISABLE_TELEMETRY"] == "1"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert environment(tmp_path, 0)["ORT_DISABLE_TELEMETRY"] == "0"


def test_model_control_and_shared_memory_are_closed(server, tmp_path):
    arguments = one(tmp_path, "bin/tritonserver").cmdline()
    closed = [argument for argument in arguments if "triptych-closed" in argument]
    assert len(closed) == 2
    assert all(argument.endswith("=" + 32 * "*") for argument in closed)  # not for all users of the machine to read
    with grpc.InferenceServerClient(server.addresses.grpc) as client:
        for closed in (
            client.get_model_repository_index,
            client.get_system_shared_memory_status,
            client.get_log_settings,
        ):
            with pytest.raises(InferenceServerException, match="restricted"):
                closed()
        assert client.get_inference_statistics().model_stats
    with http.InferenceServerClient(server.addresses.http.removeprefix("http://")) as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            client.load_model("echo")
        assert client.is_server_ready()


@pytest.mark.parametrize(("victim", "words"), [("repository/gate/", "model 'gate'"), ("bin/tritonserver", "SIGKILL")])
def test_after_a_kill_clients_know_and_service_comes_back(server, events, tmp_path, victim, words):
    wait_event(events, State.READY)
    with in_flight(server.addresses.grpc, tmp_path) as (future, _):
        one(tmp_path, victim).kill()
        assert future.exception(60).status() == "StatusCode.UNAVAILABLE"
    assert words in wait_event(events, State.RESTARTING).text
    wait_event(events, State.READY)
    assert echo(server.addresses.grpc) == 7
    assert len(processes(tmp_path)) == 3
    assert len(regions(run_of(tmp_path))) == 2


def test_all_starts_anew_where_tritons_own_process_has_lost_the_gpu(events, tmp_path):
    """What TensorRT says then in Triton's log, said here by a model."""
    said, line = (
        tmp_path / "said",
        'E1130 16:00:00.1 7 logging.cc:40] "Error Code 1: Cuda Runtime (misaligned address)"',
    )
    body = (
        f"import pathlib, threading, time; said = pathlib.Path({str(said)!r}); wait = lambda: said.exists() or time.sleep(0.01)\n"
        f"        say = lambda: ([*iter(wait, True)], said.unlink(), print({line!r}, flush=True))\n"
        "        threading.Thread(target=say, daemon=True).start()"
    )
    server = make_server(slow_build(tmp_path, body), on_event=events.put).start(30)
    try:
        wait_event(events, State.READY)
        said.touch()
        assert "tritonserver has lost the GPU (misaligned address)" in wait_event(events, State.RESTARTING).text
        wait_event(events, State.READY, 30)
        assert echo(server.addresses.grpc) == 7
    finally:
        server.kill()


def test_what_dies_again_and_again_once_it_is_ready_is_started_again_and_again(events, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_CRASHES", 2)
    with make_server(on_event=events.put) as server:
        for _ in range(3):
            wait_event(events, State.READY, 60)
            one(tmp_path, "repository/echo/").kill()
        wait_event(events, State.READY, 60)
        assert echo(server.addresses.grpc) == 7


def test_starts_in_vain_give_up(events, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_CRASHES", 2)
    broken = tmp_path / "broken"
    build = slow_build(tmp_path, f"if __import__('os').path.exists('{broken}'): raise RuntimeError('no memory left')")
    server = make_server(build, on_event=events.put).start(30)
    run = run_of(tmp_path)
    broken.touch()
    one(tmp_path, "repository/echo/").kill()
    assert server.watch() == 1
    assert "no memory left; not ready after 2 starts" in str(server.failure)
    assert nothing_left(tmp_path, run)


def test_brackets_in_brackets_over_http_end_nothing(server):
    body = b"[" * 5_000_000
    for _ in range(5):
        with pytest.raises(urllib.error.HTTPError, match="500"):
            urllib.request.urlopen(f"{server.addresses.http}/v2/models/echo/infer", body)
    assert echo(server.addresses.grpc) == 7
    assert server.state == State.READY


def test_stacks_stay_as_they_are_where_what_may_be_used_is_counted(tmp_path):
    overcommit = tmp_path / "overcommit_memory"
    overcommit.write_text("2\n")
    assert stack_limits(overcommit) == resource.getrlimit(resource.RLIMIT_STACK)
    overcommit.write_text("0\n")
    assert stack_limits(overcommit)[0] == STACK_BYTES


@pytest.mark.parametrize("body", ["raise RuntimeError('unet.onnx: truncated')", "raise SystemExit(3)"])
def test_a_model_that_fails_to_load_is_named_at_once(tmp_path, body):
    server = make_server(slow_build(tmp_path, body))
    with pytest.raises(CannotServe, match=r"(?s)extra.*(truncated|SystemExit)"):
        server.start(30)
    assert not processes(tmp_path)
    assert not [*tmp_path.glob("triptych-run-*")]


def test_a_build_that_is_refused_says_why(tmp_path):
    class ManifestError(Exception):
        pass

    def refuse(*_):
        raise ManifestError("unet.onnx: missing")

    with pytest.raises(CannotServe, match=r"^unet.onnx: missing$"):
        make_server(tmp_path, prepare=refuse).start(5)


def test_a_load_that_hangs_ends_at_the_timeout(tmp_path):
    with pytest.raises(CannotServe, match="not ready after 1 s"):
        make_server(slow_build(tmp_path, "import threading; threading.Event().wait()")).start(1)
    assert not processes(tmp_path)


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotServe, match=f"port {port} on 127.0.0.1: .*in use.*--grpc-port"):
            make_server(grpc_port=port).start(5)


def test_a_grace_that_runs_out_is_reported(server, tmp_path):
    with in_flight(server.addresses.grpc, tmp_path) as (future, _):
        server.stop(0.3)
        assert future.exception(2)
    assert "cut off" in str(server.failure)
    assert not processes(tmp_path)


def test_a_crash_while_draining_ends_the_drain(server, events, tmp_path):
    with in_flight(server.addresses.grpc, tmp_path) as (future, _):
        server.request_stop(60)
        wait_event(events, State.DRAINING)
        one(tmp_path, "repository/gate/").kill()
        assert future.exception(2)
    assert server.wait(5)


def test_an_idle_stream_does_not_hold_up_the_stop(server, monkeypatch):
    monkeypatch.setattr(supervisor, "EXIT_S", 0.1)
    with grpc.InferenceServerClient(server.addresses.grpc) as client:
        client.start_stream(lambda **_: None)
        server.stop(30)
    assert server.failure is None


def test_sigterm_drains_and_exits_0(tmp_path):
    with serve_process() as process:
        url, run = grpc_line(process), run_of(tmp_path)
        with in_flight(url, tmp_path) as (future, gate):
            process.send_signal(signal.SIGTERM)
            until(lambda: "finishing" in process.stderr.readline())
            gate.touch()
            assert future.result(10).as_numpy("python") is not None
        assert process.wait(10) == 0
        assert nothing_left(tmp_path, run)


def test_a_second_ctrl_c_kills_at_once(tmp_path):
    with serve_process() as process:
        with in_flight(grpc_line(process), tmp_path) as (future, _):
            process.send_signal(signal.SIGINT)
            until(lambda: "finishing" in process.stderr.readline())
            process.send_signal(signal.SIGINT)
            assert future.exception(2)
        assert process.wait(5) == 130
        assert not processes(tmp_path)


def test_sigterm_while_loading_exits_0(tmp_path):
    reached = tmp_path / "reached"
    body = f"import pathlib, threading; pathlib.Path({str(reached)!r}).touch(); threading.Event().wait()"
    with serve_process(slow_build(tmp_path, body)) as process:
        until(reached.exists)
        run = run_of(tmp_path)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        assert nothing_left(tmp_path, run)


def test_a_killed_supervisor_leaves_no_process_and_the_next_run_removes_the_rest(tmp_path):
    with serve_process() as process:
        grpc_line(process)
        process.kill()
        until(lambda: not processes(tmp_path))
    abandoned = run_of(tmp_path)
    (SHM / f"{abandoned.name}_of-a-stub-that-was-killed").touch()
    os.utime(abandoned, (0, 0))
    with make_server(), make_server() as second:
        assert echo(second.addresses.grpc) == 7  # the first one's folder is locked and stays
        assert not abandoned.exists()
        assert not regions(abandoned)
        second.kill()


def test_importing_the_supervisor_is_light():
    code = "import sys, triptych_server; assert not {'torch', 'onnxruntime', 'pytriton'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
