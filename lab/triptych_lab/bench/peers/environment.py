"""Make virtual environments for peers whose packages do not fit ours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import BenchError

MARK = "triptych-requirements.txt"


def environment(folder: Path, requirements: Path) -> Path:
    """Make the virtual environment `folder` with the pinned packages of a file, unless it has them; return its Python.

    Raises:
        BenchError: pip failed; with its last line.
    """
    python, mark, wanted = folder / "bin/python", folder / MARK, requirements.read_text("utf-8")
    if python.is_file() and mark.is_file() and mark.read_text("utf-8") == wanted:
        return python
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    _run(
        [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--requirement",
            str(requirements),
        ]
    )
    mark.write_text(wanted, "utf-8")
    return python


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise BenchError(f"{' '.join(command[:4])} … failed: {words[-1] if words else done.returncode}")
