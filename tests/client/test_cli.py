"""The command as a process: where it writes, whatever the locale, the terminal and the proxies, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

TRIPTYCH = [sys.executable, "-c", "from triptych.cli import main; main()"]
GENERATE = [*TRIPTYCH, "generate", "a fox"]


@contextlib.contextmanager
def least_triton(loading=0):
    command = [sys.executable, "-m", "tests.client.least_triton", str(loading)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as server:
        yield server.stdout.readline().strip()
        server.terminate()


@pytest.fixture(scope="module")
def url():
    with least_triton() as address:
        yield address


def call(*arguments, timeout=60, **environment):
    return subprocess.run(
        [*map(str, arguments)], capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}
    )


def read_all(terminal):
    seen = b""
    while True:
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # the terminal's other end is closed
            return seen


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_paths_go_to_the_pipe_while_bars_go_to_the_terminal(url, tmp_path, options):
    ours, theirs = pty.openpty()
    command = [*GENERATE, "-n", "2", "--url", url, "-o", str(tmp_path), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown = read_all(ours)
        lines = process.stdout.read().splitlines()
    paths = [json.loads(line)["path"] if options else line for line in lines]
    assert process.returncode == 0
    assert sorted(paths) == sorted(str(path) for path in tmp_path.iterdir())
    assert len(paths) == 2
    assert b"image_" not in shown


def test_a_folder_that_cannot_be_is_one_line(url, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    for folder in (tmp_path / "file", Path("/proc/none")):
        done = call(*GENERATE, "--url", url, "-o", folder)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("timeout", ["inf", "1e12"])
def test_a_timeout_that_is_no_time_is_usage(url, tmp_path, timeout):
    done = call(*GENERATE, "--url", url, "-o", tmp_path, "--deadline", timeout)
    assert done.returncode == 2
    assert done.stderr.startswith("error: timeout: ")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_folder_that_the_locale_cannot_write_gets_its_picture(url, tmp_path, encoding):
    folder = tmp_path / "Bücher 書"
    done = call(*GENERATE, "--url", url, "-o", folder, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    (made,) = folder.iterdir()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{str(made).encode(encoding, 'backslashreplace').decode(encoding)}\n"


@pytest.mark.parametrize(
    ("proxy", "host"), [("http_proxy", "localhost"), ("grpc_proxy", "127.0.0.1"), ("https_proxy", "dns:///localhost")]
)
def test_loopback_is_never_proxied(url, tmp_path, proxy, host):
    there = url.replace("127.0.0.1", host)
    environment = {proxy: "http://127.0.0.1:1", "no_proxy": ""}
    done = call(*GENERATE, "--url", there, "--timeout", "20", "-o", tmp_path, **environment)
    assert done.returncode == 0, done.stderr


def test_wrong_usage_is_one_line_that_is_not_wrapped(tmp_path):
    name = "--" + "x" * 300
    for command in ([*GENERATE, name], [*TRIPTYCH, name], [*TRIPTYCH, "samplers", "--build", tmp_path / ("y" * 200)]):
        done = call(*command, COLUMNS="40")
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert "x" * 300 in done.stderr or "y" * 200 in done.stderr


def test_a_server_that_loads_is_waited_for_and_told(tmp_path):
    with least_triton(loading=3) as url:
        done = call(*GENERATE, "--url", url, "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("the server loads its models; waiting for up to 600 s …\n")
    assert done.stderr.count("waiting") == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_timeout_ends_the_wait_for_a_server_that_loads(tmp_path):
    with least_triton(loading=10**9) as url:
        done = call(*GENERATE, "--url", url, "-o", tmp_path, "--timeout", "1", "--quiet")
    assert done.returncode == 69
    assert done.stderr.startswith("error: no server is ready there (")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["generate", "a fox"], ["samplers"], ["verify"]])
def test_nobody_there_is_exit_69(command):
    done = call(*TRIPTYCH, *command, "--url", "127.0.0.1:1", "--timeout", "1")
    assert done.returncode == 69
    assert done.stderr.splitlines()[-1].startswith("error: no server is ready there (")
    assert done.stdout == ""


def completed(*words):
    line = {"COMP_WORDS": " ".join(["triptych", *words]), "COMP_CWORD": str(len(words))}
    program = (
        "import sys; sys.argv = ['triptych']\n"
        "from triptych.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    heavy = {'torch', 'diffusers', 'gradio', 'onnxruntime', 'tritonclient'} & set(sys.modules)\n"
        "    assert not heavy, heavy"
    )
    done = call(sys.executable, "-c", program, _TRIPTYCH_COMPLETE="complete_bash", **line)
    assert done.stderr == ""
    return done.stdout.split()


def test_shells_complete_commands_options_and_choices_with_nothing_heavy():
    assert {"generate"} <= set(completed("gen"))
    assert {"--prior-steps", "--prior-num-inference-steps"} <= set(completed("generate", "--prior"))
    assert set(completed("generate", "--output-format", "")) == {"png", "jpeg", "webp"}


@pytest.mark.parametrize(("module", "name"), [("psutil", "serve"), ("triptych_demo", "demo")])
def test_a_command_whose_extra_is_missing_is_one_line_and_leaves_help_alone(module, name):
    def run(word):
        code = f"import sys; sys.modules[{module!r}] = None; sys.argv = ['triptych', {word!r}]; "
        return call(sys.executable, "-c", f"{code}from triptych.cli import main; main()", COLUMNS="200")

    alone, all_of_it = run(name), run("--help")
    assert (alone.returncode, alone.stdout) == (1, "")
    assert alone.stderr == f"error: {module} is missing; pip install 'triptych[server]'\n"
    assert (all_of_it.returncode, all_of_it.stderr) == (0, "")
    assert " Not installed here: serve, demo: triptych[server] " in all_of_it.stdout
    assert "│ workload " in all_of_it.stdout
