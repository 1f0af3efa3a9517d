"""NVIDIA's perf_analyzer for the tests: `python tests/get_perf_analyzer.py FOLDER` makes `FOLDER/perf_analyzer`.

The binary comes from its wheel on PyPI, which pip installs only beside glibc ≥ 2.38. Where glibc is older and the system is a
Debian, the C and C++ libraries of Debian 13 go into the folder with it, and the program runs through their loader; nothing is
installed. Elsewhere, and without those sources, it says why not and exits with 1: the tests that need it are then skipped.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

VERSION = "2.60.0"
SUITE, PACKAGES = "trixie", ("libc6", "libstdc++6", "libgcc-s1", "libssl3t64", "zlib1g")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
LIBRARIES = "usr/lib/x86_64-linux-gnu"
TIMEOUT_S = 300


def get(folder: Path) -> Path:
    """The program, made where it is missing; a `CalledProcessError`, `OSError` or `TimeoutExpired` where it cannot be."""
    program = folder / "perf_analyzer"
    if not program.is_file():
        binary = _unpacked_wheel(folder)
        command = f'"{binary}"'
        if not _runs([str(binary)]):
            libraries = _newer_libraries(folder / "libraries")
            command = f'"{libraries}/ld-linux-x86-64.so.2" --library-path "{libraries}" {command}'
        draft = folder / "draft"
        draft.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        draft.chmod(0o755)
        _run([str(draft), "--version"])
        draft.rename(program)
    return program


def _unpacked_wheel(folder: Path) -> Path:
    platform = ("--python-version", "3.12", "--platform", "manylinux_2_38_x86_64", "--only-binary=:all:", "--no-deps")
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *platform)
    _run([*pip, "--dest", str(folder), f"perf-analyzer=={VERSION}"])
    (wheel,) = folder.glob("perf_analyzer-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "wheel")
    wheel.unlink()
    binary = folder / "wheel/perf_analyzer/bin/perf_analyzer"
    binary.chmod(0o755)
    return binary


def _newer_libraries(folder: Path) -> Path:
    """Debian 13's libraries, by apt with lists of its own."""
    (folder / "lists/partial").mkdir(parents=True, exist_ok=True)
    source = folder / "sources.list"
    source.write_text(f"deb [signed-by={KEYRING}] {_mirror()} {SUITE} main\n")
    own = {"Dir::Etc::sourcelist": source, "Dir::Etc::sourceparts": "-", "Dir::State::Lists": folder / "lists"}
    apt = ["apt-get", "-qq", *(word for name, value in own.items() for word in ("-o", f"{name}={value}"))]
    _run([*apt, "update"])
    _run([*apt, "download", *PACKAGES], folder)
    for package in folder.glob("*.deb"):
        _run(["dpkg", "-x", str(package), str(folder)])
    return folder / LIBRARIES


def _mirror() -> str:
    """Where this Debian takes its packages from."""
    for path in SOURCES:
        if path.is_file() and (
            found := re.search(r"^(?:URIs:|deb)\s.*?(https?://\S+)", path.read_text(), re.MULTILINE)
        ):
            return found[1]
    raise FileNotFoundError(
        "no sources of Debian packages: this glibc is too old for perf_analyzer, and no newer is at hand"
    )


def _runs(command: list[str]) -> bool:
    return subprocess.run([*command, "--version"], capture_output=True, check=False).returncode == 0


def _run(command: list[str], folder: Path | None = None) -> None:
    subprocess.run(command, cwd=folder, check=True, timeout=TIMEOUT_S)


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{get(Path(sys.argv[1]).resolve())}\n")
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"no perf_analyzer here, its tests will be skipped: {error}")
