"""Checks of GPUs and of what runs on them. The CPU path needs none of it, so their findings are notes, never problems."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from triptych_lab.doctor import probes
from triptych_lab.doctor.finding import Level, Said, finding
from triptych_serving.tensorrt.library import CUDA_HINT, CUDA_TARGET, GPU_WHEEL_HINT, RTX_BINDINGS

QUERY = "name,driver_version,compute_cap,memory.total"
OLDEST = 7.5  # Turing, the oldest that CUDA 13, TensorRT since 10.5 and TensorRT-RTX support
DRIVER = 580  # the first with CUDA 13, which Triton's containers have since 25.08
NONE = "none: cpu target only"
MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", RTX_BINDINGS)}
NEITHER = "neither TensorRT nor TensorRT-RTX is installed; only targets with engines need one"
LOAD = "import sys; from triptych_serving.tensorrt import library; print(library.load(sys.argv[1]).__version__)"


@dataclass(frozen=True)
class Gpu:
    """A line of nvidia-smi; None for what the driver does not say."""

    name: str
    driver: str
    capability: float | None
    memory_mib: int | None

    @property
    def targets(self) -> tuple[str, ...]:
        """The export targets that fit it, the best first."""
        if self.capability is None or self.capability < OLDEST:
            return ()
        return ("tensorrt-rtx", "tensorrt", "cuda") if "RTX" in self.name else ("tensorrt", "cuda")

    def __str__(self) -> str:
        facts = [self.name, f"SM {self.capability}" if self.capability else "SM unknown"]
        facts += [f"{self.memory_mib / 1024:.0f} GiB"] if self.memory_mib else []
        return f"{', '.join(facts)}: {' or '.join(self.targets) or 'cpu only'}"


@finding("gpus")
def gpus(output: Callable[[Sequence[str]], probes.Output] = probes.output) -> Said:
    """List GPUs, driver and the export targets that fit, by what nvidia-smi says."""
    try:
        said = output(["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"])
    except (FileNotFoundError, PermissionError):
        return Level.NOTE, NONE
    except subprocess.TimeoutExpired:
        return Level.NOTE, "nvidia-smi does not answer", "look at the driver's log (dmesg); a restart may be needed"
    if said.code:
        words = next(iter(said.text.strip().splitlines()), f"nvidia-smi ended with {said.code}")
        return Level.NOTE, f"{NONE} ({words})", "install the driver anew, or start the container with --gpus all"
    return _told([_parse(line) for line in said.text.splitlines() if line.strip()])


def _told(found: Sequence[Gpu]) -> Said:
    if not found:
        return Level.NOTE, NONE
    driver = found[0].driver
    words = f"{'; '.join(map(str, found))}; driver {driver}"
    if not any(gpu.targets for gpu in found):
        return Level.NOTE, words, f"GPU targets need compute capability {OLDEST} or newer: use the cpu target"
    if int(driver.split(".")[0]) < DRIVER:
        return (
            Level.NOTE,
            words,
            f"Triton's containers since 25.08 have CUDA 13: update the driver to {DRIVER} or newer",
        )
    return Level.OK, words


def _parse(line: str) -> Gpu:
    name, driver, capability, memory = (cell.strip() for cell in line.split(","))
    return Gpu(name, driver, _number(capability), int(_number(memory) or 0) or None)


def _number(text: str) -> float | None:
    """Read a number; None for [N/A], which nvidia-smi writes for what it does not know."""
    return float(text) if text.replace(".", "", 1).isdigit() else None


@finding("tensorrt")
def tensorrt(
    importable: Callable[[str], bool] = probes.importable,
    output: Callable[[Sequence[str]], probes.Output] = probes.output,
) -> Said:
    """Load TensorRT and TensorRT-RTX as serving loads them, each in a process of its own: a broken one may crash."""
    there = [target for target, modules in MODULES.items() if any(map(importable, modules))]
    if not there:
        return Level.NOTE, NEITHER
    said = {target: output([sys.executable, "-c", LOAD, target]) for target in there}
    words = ", ".join(f"{target} {_last_line(answer)}" for target, answer in said.items())
    if any(answer.code for answer in said.values()):
        return Level.NOTE, words, "install it anew, with the version that fits the driver's CUDA"
    if not importable("cuda"):
        return Level.NOTE, f"{words}; cuda-bindings is missing, which serving needs", CUDA_HINT
    return Level.OK, words


@finding("cuda")
def cuda(
    version_of: Callable[[str], str | None] = probes.version_of,
    output: Callable[[Sequence[str]], probes.Output] = probes.output,
) -> Said:
    """Load ONNX Runtime with CUDA as serving loads it, in a process of its own."""
    if version_of("onnxruntime-gpu") is None:
        return Level.NOTE, "onnxruntime-gpu is not installed; only the cuda target needs it"
    answer = output([sys.executable, "-c", LOAD, CUDA_TARGET])
    words = f"onnxruntime-gpu {_last_line(answer)}"
    return (Level.NOTE, words, GPU_WHEEL_HINT) if answer.code else (Level.OK, words)


def _last_line(answer: probes.Output) -> str:
    last = next(iter(answer.text.strip().splitlines()[-1:]), "")
    return f"cannot be imported: {last or f'exit code {answer.code}'}" if answer.code else last
