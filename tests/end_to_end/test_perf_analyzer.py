"""NVIDIA's perf_analyzer drives the ensemble as it is, in its default mode, and `triptych bench` drives perf_analyzer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.serial

# `make test` gets one into the virtual environment (tests/get_perf_analyzer.py).
OWN = Path(sys.prefix, "perf_analyzer")
BINARY = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer", path=f"{OWN}{os.pathsep}{os.environ['PATH']}")
MISSING = f"no perf_analyzer in PERF_ANALYZER, on PATH or in {OWN}"
DATA = {"data": [{"prompt": ["a fox"], "num_inference_steps": [3], "seed": [7]}, {"prompt": ["a 3d rocket"]}]}


@pytest.mark.skipif(not BINARY, reason=MISSING)
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


@pytest.mark.skipif(not BINARY, reason=MISSING)
def test_the_quick_suite_leaves_perf_analyzers_own_files_and_our_report(url, tmp_path):
    command = [sys.executable, "-c", "from triptych.cli import main; main()", "bench", "--perf-analyzer", "--quick"]
    workload = tmp_path / "workload.jsonl"
    workload.write_text(json.dumps({"interval_s": 0.1, "prompt": "a fox", "num_inference_steps": 1}) + "\n")
    done = subprocess.run(
        [*command, "--url", url, "--workload", workload, "-o", tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "PERF_ANALYZER": BINARY},
    )
    assert done.returncode == 0, done.stderr
    markdown, document = done.stdout.split()
    measured = json.loads(Path(document).read_text())["measurements"]
    levels = {(one["model"], one["mode"]) for one in measured}
    assert {("sdxl", "concurrency"), ("sdxl", "request_rate"), ("sdxl", "fixed_schedule")} <= levels
    assert {"tokenizer", "text_encoder", "text_encoder_2", "denoise", "vae_decoder", "image_encoder"} <= {
        one["model"] for one in measured
    }
    for one in measured:
        assert one["requests"] >= 1
        assert 0 < one["latency_s"]["p50"] <= one["latency_s"]["p99"]
        assert all((tmp_path / "out/perf_analyzer" / name).stat().st_size for name in one["files"])
    assert "## `sdxl`" in Path(markdown).read_text()
