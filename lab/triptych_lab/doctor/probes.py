"""How the checks look at this machine. Tests put their own in these functions' places."""

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

PATIENCE_S = 20


class Output(NamedTuple):
    """What a command wrote, both streams, and its exit code."""

    code: int
    text: str


def output(command: Sequence[str]) -> Output:
    """Run a command that answers at once.

    Raises:
        OSError: it is not there.
        subprocess.TimeoutExpired: it does not answer in 20 s.
    """
    done = subprocess.run(  # noqa: S603 - our own command lines
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE_S,
        text=True,
        errors="replace",
        check=False,
    )
    return Output(done.returncode, done.stdout)


def version_of(package: str) -> str | None:
    """An installed package's version, None where it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def importable(module: str) -> bool:
    """Whether a module is there, without importing it."""
    return importlib.util.find_spec(module) is not None


def providers() -> tuple[str, list[str]]:
    """onnxruntime's version and its execution providers.

    Raises:
        ImportError: it cannot be loaded.
    """
    import onnxruntime

    return str(onnxruntime.__version__), list(onnxruntime.get_available_providers())


def find_triton() -> Path:
    """The folder of the Triton that `serve` would start.

    Raises:
        ServerError: there is none.
    """
    from triptych_server.layout import find_triton as find

    return find()


def system() -> tuple[str, str, str | None]:
    """As ("Linux", "x86_64", "glibc 2.36"); None on a system with another C library."""
    libc = None
    with contextlib.suppress(ValueError, OSError):
        libc = os.confstr("CS_GNU_LIBC_VERSION")
    return platform.system(), platform.machine(), libc


def processors() -> int:
    """How many this process may use, as far as the system tells."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def open_files() -> tuple[int, int]:
    """The limit and how far it can be raised; -1 is none."""
    import resource

    soft, hard = (-1 if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(resource.RLIMIT_NOFILE))
    return soft, hard


def free_bytes(folder: Path) -> int:
    """Bytes left on the disk of a folder that may not exist yet."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def installed() -> float:
    """When this file was written, in seconds since 1970."""
    return Path(__file__).stat().st_mtime


def read(path: str) -> str | None:
    """A file of /proc or /sys; None where it cannot be read."""
    try:
        return Path(path).read_text()
    except OSError:
        return None


def refusal(host: str, port: int) -> str:
    """Why a port cannot be listened on, "" where it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Triton
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def holder(port: int) -> str:
    """Who listens on a port, as "tritonserver (process 12)"; "" where that cannot be seen."""
    import psutil

    for connection in psutil.net_connections("tcp"):
        listens = connection.status == psutil.CONN_LISTEN and connection.pid
        if listens and connection.laddr and connection.laddr.port == port:
            return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return ""
