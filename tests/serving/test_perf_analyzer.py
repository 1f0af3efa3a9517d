"""NVIDIA's perf_analyzer drives the ensemble as it is, in its default mode."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

BINARY = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer")
DATA = {"data": [{"prompt": ["a fox"], "num_inference_steps": [3], "seed": [7]}, {"prompt": ["a 3d rocket"]}]}


@pytest.mark.skipif(not BINARY, reason="no perf_analyzer on PATH or in PERF_ANALYZER (its wheel needs glibc ≥ 2.38)")
def test_perf_analyzer_drives_the_ensemble(url, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(DATA))
    files = ["--input-data", tmp_path / "data.json", "--profile-export-file", tmp_path / "profile.json"]
    done = subprocess.run(
        [BINARY, "-m", "sdxl", "-i", "grpc", "-u", url, "--request-count", "6", *files],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "throughput" in done.stdout
    # The profile holds the images' raw bytes, so it is no JSON that a parser takes.
    assert (tmp_path / "profile.json").read_bytes().count(b'"response_timestamps"') >= 6
