"""Checks of what is installed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from triptych_lab.doctor import probes
from triptych_lab.doctor.finding import Level, Said, finding

PYTHONS = ((3, 10), (3, 12))  # the CPU path is tested on these, and the wheel's Triton has a stub for each
GLIBC = (2, 35)
# Package → lowest version, and the first that is too new.
SERVER: dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]] = {
    "numpy": ((1, 26), (2,)),
    "onnxruntime": ((1, 23), None),
    "pillow": ((12, 2), None),
    "psutil": ((7,), None),
    "tokenizers": ((0, 22), None),
    "tritonclient": ((2, 73), None),
}
EXPORTER = ("torch", "diffusers", "transformers", "onnx", "onnxscript")
INSTALL = "pip install 'triptych[server]'"
EXPORT_INSTALL = "pip install 'triptych[export]'"


@finding("system")
def system(facts: Callable[[], tuple[str, str, str | None]] = probes.system) -> Said:
    """Look for Linux on x86-64 with a recent glibc, which the wheel's Triton is linked to."""
    name, architecture, libc = facts()
    found = f"{name} {architecture}, {libc or 'no glibc'}"
    if (name, architecture) != ("Linux", "x86_64"):
        return Level.PROBLEM, found, "serve on Linux x86-64; the client library runs anywhere"
    if libc is None or _numbers(libc) < GLIBC:
        return Level.PROBLEM, found, "Triton needs glibc 2.35 or newer: Debian 12, Ubuntu 22.04, RHEL 10 or newer"
    return Level.OK, found


@finding("python")
def python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Said:
    """Look for a Python that the wheel's Triton has a stub for."""
    found = ".".join(map(str, version))
    if PYTHONS[0] <= version[:2] <= PYTHONS[1]:
        return Level.OK, found
    return Level.PROBLEM, found, "Triton's Python backend is served with Python 3.10 … 3.12: make a .venv with one"


@finding("packages")
def packages(version_of: Callable[[str], str | None] = probes.version_of) -> Said:
    """Compare the packages that `triptych serve` imports with the versions that it needs."""
    versions = {package: version_of(package) for package in SERVER}
    wrong = [
        f"{package} {_words(package, version)}" for package, version in versions.items() if _unfit(package, version)
    ]
    if wrong:
        return Level.PROBLEM, "; ".join(wrong), INSTALL
    return Level.OK, ", ".join(f"{package} {version}" for package, version in versions.items())


def _unfit(package: str, version: str | None) -> bool:
    lowest, too_new = SERVER[package]
    return version is None or _numbers(version) < lowest or (too_new is not None and _numbers(version) >= too_new)


def _words(package: str, version: str | None) -> str:
    lowest, too_new = SERVER[package]
    legal = f"{_dotted(lowest)} or newer" + (f", before {_dotted(too_new)}" if too_new else "")
    return f"{version or 'is missing'} (needed: {legal})"


@finding("exporter")
def exporter(version_of: Callable[[str], str | None] = probes.version_of) -> Said:
    """Look for the packages that `triptych export` imports; serving needs none of them."""
    versions = {package: version_of(package) for package in EXPORTER}
    if missing := [package for package, version in versions.items() if version is None]:
        return Level.NOTE, f"without {', '.join(missing)}", f"to export weights of your own: {EXPORT_INSTALL}"
    return Level.OK, ", ".join(f"{package} {version}" for package, version in versions.items())


@finding("triton")
def triton(
    find: Callable[[], Path] = probes.find_triton,
    output: Callable[[Sequence[str]], probes.Output] = probes.output,
    version_of: Callable[[str], str | None] = probes.version_of,
) -> Said:
    """Run the Triton that `serve` would start, to see that its libraries load: `--help`, since it has no `--version`."""
    try:
        binary = find() / "bin/tritonserver"
    except Exception as error:  # CannotServe, which says what to do, or psutil is missing
        return Level.PROBLEM, str(error), INSTALL
    try:
        said = output([str(binary), "--help"])
    except OSError as error:
        return Level.PROBLEM, f"{binary} cannot be run: {error.strerror}", f"reinstall it: {INSTALL}"
    if "Usage: tritonserver" not in said.text:
        first = next(iter(said.text.strip().splitlines()), f"exit code {said.code}")
        return Level.PROBLEM, f"{binary} does not start: {first}", "install what it names, or use NVIDIA's container"
    wheel = version_of("nvidia-pytriton")
    return Level.OK, f"{binary} starts" + (
        f" (nvidia-pytriton {wheel})" if "pytriton" in binary.parts and wheel else ""
    )


@finding("onnxruntime")
def onnxruntime(providers: Callable[[], tuple[str, list[str]]] = probes.providers) -> Said:
    """Load ONNX Runtime and look for its CPU provider."""
    try:
        version, names = providers()
    except ImportError as error:
        return Level.PROBLEM, f"cannot be imported: {error}", INSTALL
    found = f"{version}: {', '.join(name.removesuffix('ExecutionProvider') for name in names)}"
    if "CPUExecutionProvider" not in names:
        return Level.PROBLEM, found, f"it lacks the CPU; reinstall it: {INSTALL}"
    return Level.OK, found


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version: (2, 35) for "glibc 2.35", (1, 26, 4) for "1.26.4"."""
    found = re.search(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
