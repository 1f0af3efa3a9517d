"""How the checks look at this machine. Tests pass others in place of these functions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from triptych_serving.tensorrt.library import package_version

COMMAND_TIMEOUT_S = 20


class Output(NamedTuple):
    """A command's exit code, and what it wrote to both streams."""

    code: int
    text: str


def output(command: Sequence[str]) -> Output:
    """Run a command that should answer at once.

    Raises:
        OSError: it is missing, or cannot be run.
        subprocess.TimeoutExpired: it has not ended within 20 s.
    """
    done = subprocess.run(  # noqa: S603 - our own command lines
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=COMMAND_TIMEOUT_S,
        text=True,
        errors="replace",
        check=False,
    )
    return Output(done.returncode, done.stdout)


def version_of(package: str) -> str | None:
    """Return the version of an installed package, None if it is not installed."""
    try:
        return package_version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def importable(module: str) -> bool:
    """Return whether a module is installed, without importing it."""
    return importlib.util.find_spec(module) is not None


def providers() -> tuple[str, list[str]]:
    """Return onnxruntime's version and its execution providers.

    Raises:
        ImportError: it cannot be loaded.
    """
    import onnxruntime

    return str(onnxruntime.__version__), list(onnxruntime.get_available_providers())


def find_triton() -> Path:
    """Find the folder of the Triton that `triptych serve` would start.

    Raises:
        CannotServe: there is none.
    """
    from triptych_server.layout import find_triton as find

    return find()


def system() -> tuple[str, str, str | None]:
    """Return system, architecture and C library, as ("Linux", "x86_64", "glibc 2.36"); None for other libraries than glibc."""
    libc = None
    with contextlib.suppress(ValueError, OSError):
        libc = os.confstr("CS_GNU_LIBC_VERSION")
    return platform.system(), platform.machine(), libc


def processors() -> int:
    """Count the processors that this process may use, as far as the system tells."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def open_files() -> tuple[int, int]:
    """Return the limit of open files and how far it can be raised; -1 stands for no limit."""
    import resource

    soft, hard = (-1 if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(resource.RLIMIT_NOFILE))
    return soft, hard


def free_bytes(folder: Path) -> int:
    """Return the bytes left on the disk of a folder, which need not exist yet."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def installed() -> float:
    """Return when this file was installed, in seconds since 1970."""
    return Path(__file__).stat().st_mtime


def read(path: str) -> str | None:
    """Read a file of /proc or /sys; None if that is not possible."""
    try:
        return Path(path).read_text()
    except OSError:
        return None


def refusal(host: str, port: int) -> str:
    """Return why a port cannot be listened on, "" if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Triton
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def holder(port: int) -> str:
    """Return who listens on a port, as "tritonserver (process 12)"; "" if that cannot be seen."""
    import psutil

    for connection in psutil.net_connections("tcp"):
        listens = connection.status == psutil.CONN_LISTEN and connection.pid
        if listens and connection.laddr and connection.laddr.port == port:
            return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return ""
