"""Where the command line writes, and how it ends where it cannot."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

TRIPTYCH = [sys.executable, "-c", "from triptych.cli import main; main()", "generate", "a fox"]


@pytest.fixture(scope="module")
def url():
    command = [sys.executable, "-m", "tests.client.least_triton"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as server:
        yield server.stdout.readline().strip()
        server.terminate()


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
    command = [*TRIPTYCH, "-n", "2", "--url", url, "-o", str(tmp_path), *options]
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
        done = subprocess.run([*TRIPTYCH, "--url", url, "-o", str(folder)], capture_output=True, text=True, timeout=30)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("timeout", ["inf", "1e12"])
def test_a_timeout_that_is_no_time_is_usage(url, tmp_path, timeout):
    command = [*TRIPTYCH, "--url", url, "-o", str(tmp_path), "--deadline", timeout]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert done.stderr.startswith("error: timeout: ")
