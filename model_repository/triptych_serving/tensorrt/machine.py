"""Find out which TensorRT and GPU this machine has, and whether a build can be served on it.

`python -m triptych_serving.tensorrt.machine [TARGET]` prints the answer as JSON. A process that asks CUDA holds GPU memory until
it ends, and a broken driver may crash it, so `probe` has another process ask.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from ..engines import Machine, fitting
from ..manifest import Manifest, ManifestError
from . import memory
from .library import CUDA, CUDA_HINT, CUDA_TARGET, GPU_TARGETS, LibraryMissing, check_provider, imported, load

DRIVER_HINT = "install NVIDIA's driver, or start the container with --gpus all (see `triptych doctor`)"
PROBE_TIMEOUT_S = 60
# Of onnxruntime-gpu: Turing, CUDA 13's oldest; Ampere for bfloat16. As "sm75" without the letters.
OLDEST_GPU, OLDEST_FOR_BF16 = 75, 80


def here(target: str) -> Machine:
    """Ask for TensorRT's version and the first GPU that CUDA shows, in this process.

    Raises:
        LibraryMissing: TensorRT, the driver or a GPU is missing; says which and what to do.
    """
    trt, cudart = load(target), imported(CUDA, CUDA_HINT)
    properties = _gpus(cudart)[0]
    error, _, total = cudart.cudaMemGetInfo()
    if error != cudart.cudaError_t.cudaSuccess:
        raise LibraryMissing(f"the GPU does not answer ({error.name})", DRIVER_HINT)
    if target == CUDA_TARGET:
        check_provider(trt)
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Machine(target, str(trt.__version__), _capability(properties), name, total)


def capabilities() -> tuple[str, ...]:
    """Ask, in another process, for the compute capabilities of the GPUs that CUDA shows, like "sm89", in CUDA's order."""
    command = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)  # noqa: S603
        return tuple(json.loads(done.stdout))
    except (subprocess.TimeoutExpired, ValueError):
        return ()


def _gpus(cudart: Any) -> list[Any]:
    """The properties of each GPU that CUDA shows: one at least.

    Raises:
        LibraryMissing: the driver or a GPU is missing.
    """
    error, count = cudart.cudaGetDeviceCount()
    if error == cudart.cudaError_t.cudaErrorInsufficientDriver:
        raise LibraryMissing(_driver(cudart.cudaDriverGetVersion()[1], cudart.cudaRuntimeGetVersion()[1]), DRIVER_HINT)
    if error != cudart.cudaError_t.cudaSuccess or not count:
        raise LibraryMissing(f"no NVIDIA GPU ({error.name})", DRIVER_HINT)
    answers = [cudart.cudaGetDeviceProperties(k) for k in range(count)]
    for error, _ in answers:
        if error != cudart.cudaError_t.cudaSuccess:
            raise LibraryMissing(f"the GPU does not answer ({error.name})", DRIVER_HINT)
    return [properties for _, properties in answers]


def _capability(properties: Any) -> str:
    return f"sm{properties.major}{properties.minor}"


def probe(target: str) -> Machine:
    """Ask `here` in another process.

    Raises:
        LibraryMissing: as `here`, or the process crashed or did not answer in PROBE_TIMEOUT_S seconds.
    """
    command = [sys.executable, "-m", __name__, target]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise LibraryMissing(f"the driver does not answer in {PROBE_TIMEOUT_S} s", DRIVER_HINT) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise LibraryMissing(f"TensorRT cannot be asked ({last})", DRIVER_HINT) from None
    if "missing" in answer:
        raise LibraryMissing(**answer)
    return Machine(**answer)


def check_engines(manifests: Collection[Manifest], *, adapters: bool = True) -> None:
    """Refuse builds that cannot be served here, as far as their manifests tell; their files are not read.

    Raises:
        ManifestError: TensorRT or a GPU is missing, an engine does not fit, or all of them need more memory than the GPU has;
            names it and what to do.
    """
    for_gpus = [manifest for manifest in manifests if manifest.target in GPU_TARGETS]
    for manifest in for_gpus:
        try:
            machine = probe(manifest.target)
        except LibraryMissing as error:
            raise ManifestError(
                f"{manifest.build}: exported for {manifest.target}, which cannot run here: {error.missing}; {error.mend}; or "
                "export for the processor: triptych export … --target cpu -o DIR"
            ) from None
        for stage in manifest.stages:
            if manifest.target == CUDA_TARGET:
                _check_graph(manifest, stage, machine)
            else:
                fitting(manifest, stage, machine)
    if for_gpus:
        memory.check(for_gpus, machine, adapters=adapters)


def _check_graph(manifest: Manifest, stage: str, machine: Machine) -> None:
    """Refuse a stage of `--target cuda` whose precision this GPU has not.

    Raises:
        ManifestError: names the stage, and what mends it.
    """
    precision = manifest.stages[stage].get("precision")
    oldest, mend = OLDEST_GPU, "--target cpu"
    if precision == "bf16":
        oldest, mend = OLDEST_FOR_BF16, f"--target cuda --precision {stage}=fp32"
    if int(machine.capability.removeprefix("sm")) < oldest:
        raise ManifestError(
            f"{stage}: computes in {precision}, which needs sm{oldest} or newer; {machine.gpu} is {machine.capability}; "
            f"triptych export … {mend} -o {manifest.build}"
        )


def facts(target: str, *, reproducible: bool) -> dict[str, str]:
    """Return what the bytes of an image depend on beside files and packages, for receipts; empty for the CPU.

    Raises:
        LibraryMissing: as `probe`.
    """
    if target not in GPU_TARGETS:
        return {}
    found = probe(target)
    return {
        **({} if target == CUDA_TARGET else {"tensorrt": found.version}),
        "gpu": f"{found.gpu} ({found.capability})",
        "reproducible": json.dumps(reproducible),
    }


def _driver(version: int, wanted: int) -> str:
    """Say in words what is wrong with the driver. Versions are as CUDA gives them: 13050 is 13.5."""
    if not version:
        return "no NVIDIA driver"
    return f"the NVIDIA driver is of CUDA {_dotted(version)}, and {wanted // 1000}.x is needed"


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"


def _answer(target: str) -> dict[str, Any]:
    try:
        return asdict(here(target))
    except LibraryMissing as error:
        return {"missing": error.missing, "mend": error.mend}


def _capabilities() -> list[str]:
    try:
        return [_capability(gpu) for gpu in _gpus(imported(CUDA, CUDA_HINT))]
    except LibraryMissing:
        return []


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_answer(sys.argv[1]) if sys.argv[1:] else _capabilities()))
