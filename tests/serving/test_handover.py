"""Files that one process fills and another waits for, also when the first dies."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from triptych_serving.handover import Fetching, Pending, folder


@pytest.fixture
def fetched(tmp_path):
    """What has come, and a way to wait for more."""
    come, fetching = queue.SimpleQueue(), Fetching(tmp_path)
    return come, lambda name: fetching.fetch(name, come.put)


def test_files_come_when_they_are_filled_in_whatever_order(tmp_path, fetched):
    come, fetch = fetched
    first, second = Pending(tmp_path), Pending(tmp_path)
    for one in (first, second):
        fetch(one.name)
    second.fill({"sample": np.float32([1, 2])})
    assert come.get(timeout=30)["sample"].tolist() == [1, 2]
    assert come.empty()
    first.fill({})
    assert come.get(timeout=30) == {}
    assert not [*tmp_path.iterdir()]


def test_the_file_of_a_process_that_died_comes_as_nothing(tmp_path, fetched):
    come, fetch = fetched
    code = (
        "import sys, pathlib; from triptych_serving.handover import Pending; "
        "one = Pending(pathlib.Path(sys.argv[1])); print(one.name, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=-1, stdout=-1, text=True) as process:
        fetch(process.stdout.readline().strip())
        assert come.empty()
        process.kill()
        assert come.get(timeout=30) is None


@pytest.mark.parametrize("name", ["", "..", "/etc/passwd", "0" * 32, "x" * 9999])
def test_a_name_that_is_none_is_an_error_at_once(fetched, name):
    _, fetch = fetched
    with pytest.raises((ValueError, OSError)):
        fetch(name)


def test_the_folder_is_private_to_the_processes_of_one_triton(tmp_path):
    made = folder({"TRIPTYCH_RECORDS": str(tmp_path)})
    assert made.parent == tmp_path
    assert made.stat().st_mode & 0o777 == 0o700
    assert folder({"TRIPTYCH_RECORDS": str(tmp_path)}) == made
    made.rmdir()
    made.symlink_to(Path.home())
    with pytest.raises(PermissionError, match=str(os.getppid())):
        folder({"TRIPTYCH_RECORDS": str(tmp_path)})
