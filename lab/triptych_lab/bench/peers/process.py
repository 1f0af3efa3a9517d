"""Run a peer in a process of its own, perhaps with another Python: a JSON line for each question and one for each answer.

    → {"requests": [{"prompt": "a fox", "seed": 3, "num_inference_steps": 20, "guidance_scale": 4.0}], "batch": 1}
    ← {"seconds": 0.71}
    → {"picture": {"prompt": "a fox", "seed": 3, "num_inference_steps": 20, "guidance_scale": 4.0}}
    ← {"picture": "a PNG file in base64"}

Its first line, once it is loaded, is `{"ready": {"torch": "2.13.0", …}}`. If it fails at a question, it answers `{"error": "…"}`.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import BenchError
from .environment import environment
from .peer import Peer

PROGRAMS = "triptych_export.peers"
# Everything in its environment, pinned: pip takes minutes to find versions that fit together.
OPTIMUM = Path(__file__).with_name("optimum.txt")
END_S = 10.0
# Peers must not ask a hub, report to anybody, or print their progress.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}


class ProcessPeer:
    """`Peer` over a program that speaks the protocol above."""

    def __init__(self, name: str, command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        """Start the program and wait until it is loaded.

        Raises:
            BenchError: it ended or failed before.
        """
        self.name = name
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ and dict(environ)
        )
        try:
            self.versions: dict[str, str] = self._answer("ready")
        except BaseException:
            self.close()
            raise

    def draw(self, requests: Sequence[Mapping[str, Any]], *, batch: int = 1) -> float:
        self._ask({"requests": [dict(one) for one in requests], "batch": batch})
        return float(self._answer("seconds"))

    def picture(self, request: Mapping[str, Any]) -> bytes:
        self._ask({"picture": dict(request)})
        return base64.b64decode(self._answer("picture"))

    def close(self) -> None:
        """End the program."""
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, question: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise BenchError(f"{self.name}: it has ended ({error})") from None

    def _answer(self, key: str) -> Any:
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        line = self._process.stdout.readline()
        try:
            answer = json.loads(line)
            return answer[key]
        except ValueError:
            raise BenchError(f"{self.name}: {line.strip() or 'it ended without a word'}") from None
        except (KeyError, TypeError):
            raise BenchError(f"{self.name}: {answer.get('error', line)}") from None


@contextmanager
def diffusers(weights: Path, adapters: Path | None = None) -> Iterator[Peer]:
    """Run diffusers' own SDXL pipeline, float32, on as many threads as ONNX Runtime has; with the LoRAs of a folder.

    Raises:
        BenchError: diffusers or torch is not installed here, or does not load the weights.
    """
    for package in ("torch", "diffusers", *(["peft"] if adapters else [])):
        if find_spec(package) is None:
            raise BenchError(f"diffusers: {package} is not installed here; pip install 'triptych[export]'")
    given = [str(folder) for folder in (weights, adapters) if folder]
    with _running("diffusers", [sys.executable, *_program("diffusers_pipeline"), *given], os.environ) as peer:
        yield peer


@contextmanager
def optimum(weights: Path, folder: Path) -> Iterator[Peer]:
    """Run Optimum's ONNX Runtime pipeline in a virtual environment inside `folder`, which is made if it is missing.

    Raises:
        BenchError: the environment cannot be made, or the weights are not loaded.
    """
    python = environment(folder / "optimum", OPTIMUM)
    ours = {**os.environ, "PYTHONPATH": str(_package_root())}
    with _running("optimum", [str(python), *_program("optimum_pipeline"), str(weights), str(folder)], ours) as peer:
        yield peer


@contextmanager
def _running(name: str, command: Sequence[str], environ: Mapping[str, str]) -> Iterator[ProcessPeer]:
    threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
    peer = ProcessPeer(name, command, {**environ, **QUIET, **threads})
    try:
        yield peer
    finally:
        peer.close()


def _program(name: str) -> tuple[str, str]:
    return "-m", f"{PROGRAMS}.{name}"


def _package_root() -> Path:
    """Find the folder that holds `triptych_export`, for a Python in which it is not installed."""
    spec = find_spec("triptych_export")
    if spec is None or not spec.submodule_search_locations:
        raise BenchError("optimum: triptych_export is not installed here; pip install 'triptych[export]'")
    return Path(next(iter(spec.submodule_search_locations))).parent
