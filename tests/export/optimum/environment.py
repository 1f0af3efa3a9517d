"""A virtual environment with the real Optimum, made once and kept under `build/` for as long as its pins stay the same."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from triptych_lab.bench.peers.process import OPTIMUM as PINS

BUILD = Path(__file__).parents[3] / "build"
MADE = "made"
# Nothing of Optimum's asks the hub or reports to anybody.
ENVIRON = {**os.environ, "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}


def python() -> Path:
    """The environment's Python."""
    pins = hashlib.sha256(PINS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = BUILD / f"optimum-{pins}"
    if not (folder / MADE).exists():
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(PINS)])
        (folder / MADE).touch()
    return folder / "bin/python"


def export(weights: Path, output: Path, task: str = "text-to-image") -> None:
    """`optimum-cli export onnx` of an SDXL; a refiner's task is image-to-image."""
    cli = python().with_name("optimum-cli")
    _run([str(cli), "export", "onnx", "--model", str(weights), "--task", task, str(output)])


def draw(folder: Path, requests: Path) -> None:
    """Optimum's pipelines over a folder, in a process of theirs; `draw.py` tells the rest."""
    _run([str(python()), str(Path(__file__).with_name("draw.py")), str(folder), str(requests)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRON)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-3000:]}"
