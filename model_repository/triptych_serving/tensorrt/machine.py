"""What of TensorRT this machine has, and whether a build can be served on it.

`python -m triptych_serving.tensorrt.machine TARGET` prints the answer as JSON: asking CUDA takes memory of the GPU for as long
as a process lives, and a broken driver may end it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

from ..engines import Machine, fitting
from ..manifest import Manifest, ManifestError
from .library import CUDA, CUDA_HINT, TARGETS, LibraryMissing, imported, load

DRIVER_HINT = "install NVIDIA's driver, or start the container with --gpus all (see `triptych doctor`)"
PATIENCE_S = 60


def here(target: str) -> Machine:
    """TensorRT and the GPU that CUDA shows first.

    Raises:
        LibraryMissing: says what is not there, and what mends that.
    """
    trt, cudart = load(target), imported(CUDA, CUDA_HINT)
    error, count = cudart.cudaGetDeviceCount()
    if error == cudart.cudaError_t.cudaErrorInsufficientDriver:
        raise LibraryMissing(_driver(cudart.cudaDriverGetVersion()[1], cudart.cudaRuntimeGetVersion()[1]), DRIVER_HINT)
    if error != cudart.cudaError_t.cudaSuccess or not count:
        raise LibraryMissing(f"no NVIDIA GPU ({error.name})", DRIVER_HINT)
    error, properties = cudart.cudaGetDeviceProperties(0)
    if error != cudart.cudaError_t.cudaSuccess:
        raise LibraryMissing(f"the GPU does not answer ({error.name})", DRIVER_HINT)
    capability, name = f"sm{properties.major}{properties.minor}", properties.name
    return Machine(target, str(trt.__version__), capability, name.decode() if isinstance(name, bytes) else str(name))


def probe(target: str) -> Machine:
    """`here`, asked in a process of its own.

    Raises:
        LibraryMissing: says what is not there, and what mends that.
    """
    command = [sys.executable, "-m", __name__, target]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise LibraryMissing(f"the driver does not answer in {PATIENCE_S} s", DRIVER_HINT) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise LibraryMissing(f"TensorRT cannot be asked ({last})", DRIVER_HINT) from None
    if "missing" in answer:
        raise LibraryMissing(**answer)
    return Machine(**answer)


def check_engines(manifest: Manifest) -> None:
    """Whether a build can be served here, as far as that can be said without reading its files.

    Raises:
        ManifestError: names the target or the engine, what is missing and what mends it.
    """
    if manifest.target not in TARGETS:
        return
    try:
        machine = probe(manifest.target)
    except LibraryMissing as error:
        raise ManifestError(
            f"{manifest.build}: exported for {manifest.target}, which cannot run here: {error.missing}; {error.mend}; or export "
            "for the processor: triptych export … --target cpu -o DIR"
        ) from None
    for stage in manifest.stages:
        fitting(manifest, stage, machine)


def facts(target: str, *, reproducible: bool) -> dict[str, str]:
    """What an image's bytes depend on beside files and packages, for receipts."""
    if target not in TARGETS:
        return {}
    found = probe(target)
    return {
        "tensorrt": found.version,
        "gpu": f"{found.gpu} ({found.capability})",
        "reproducible": json.dumps(reproducible),
    }


def _driver(version: int, wanted: int) -> str:
    """Numbers as CUDA gives them, 13050 being 13.5."""
    if not version:
        return "no NVIDIA driver"
    return f"the NVIDIA driver is of CUDA {_dotted(version)}, and {wanted // 1000}.x is needed"


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _answer(target: str) -> dict[str, str]:
    try:
        return asdict(here(target))
    except LibraryMissing as error:
        return {"missing": error.missing, "mend": error.mend}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_answer(sys.argv[1])))
