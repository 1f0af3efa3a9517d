"""What a run of Triton needs around it: free ports, the wheel's files laid out, a private folder, the command line."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import ipaddress
import os
import re
import secrets
import shutil
import socket
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from triptych_serving import proofs, record
from triptych_serving.adapters import FOLDER, MEGABYTES, SHELF

INSTALL = "pip install 'triptych[server]'"
RUN_PREFIX = "triptych-run-"
BACKEND = "backends/python"
STUB = "triton_python_backend_stub"
SHM = Path("/dev/shm")  # noqa: S108 - where Triton keeps its regions; nothing is created here
# Triton writes paths into shell commands without quotes, and lists of paths are cut at colons.
_PLAIN = re.compile(r"[\w/.+,=@%-]+", re.ASCII)
FALLBACKS = Path("/tmp"), Path("/var/tmp")  # noqa: S108 - for the folders of runs where TMPDIR does not do
TRITON_HOME = "TRIPTYCH_TRITON_HOME"  # another Triton than the wheel's, laid out as in NVIDIA's images
IMAGES = "images"  # the cache of finished ones, gone with the run
ADAPTERS = "adapters"  # those in use, as graphs read them, gone with the run
RECORDS = "records"  # what the models' processes note for the supervisor
MIN_CACHE_BYTES = 1 << 20  # Triton's cache takes no less
KEY = "triptych-closed"  # the header without which `_CLOSED` stays closed
_CLOSED = "shared-memory,model-repository,logging,trace"


class CannotServe(Exception):
    """The server cannot start or go on; the message says why and what mends it."""


@dataclass(frozen=True)
class AdapterFolder:
    """A folder of adapters, and the megabytes that those in use may take on a disk, as graphs read them."""

    path: Path
    megabytes: float


@dataclass(frozen=True)
class Addresses:
    """Where one server answers."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int

    @property
    def grpc(self) -> str:
        """What clients take as their URL."""
        return f"{self.reachable}:{self.grpc_port}"

    @property
    def http(self) -> str:
        return f"http://{self.reachable}:{self.http_port}"

    @property
    def metrics(self) -> str:
        return f"http://{self.reachable}:{self.metrics_port}/metrics"

    @property
    def reachable(self) -> str:
        """The host that this machine can connect to."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104 - compared, not bound

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return ipaddress.ip_address(self.host).is_loopback

    @classmethod
    def choose(cls, host: str, http: int, grpc: int, metrics: int, held: contextlib.ExitStack) -> Addresses:
        """Resolve the host, check that the ports are free, and keep other servers of ours off them while `held` is open.

        A port of 0 takes any free one.

        Raises:
            CannotServe: a port is in use, or the host is unknown, not this machine's, or has no IPv4 address.
        """
        address = _resolve(host)
        with contextlib.ExitStack() as probes:
            wanted = {"http": http, "grpc": grpc, "metrics": metrics}
            chosen = [_take(probes, held, address, name, port) for name, port in wanted.items()]
        return cls(address, *chosen)


def _resolve(host: str) -> str:
    """The IPv4 address of a name: Triton's HTTP would listen on 255.255.255.255 for one, and takes no IPv6."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # a ValueError: it cannot be written as a name
        raise CannotServe(f"host {host!r}: {error.args[-1]}; legal: a name or IPv4 address of this machine") from None
    addresses = [str(address[0]) for family, *_, address in found if family == socket.AF_INET]
    if not addresses:
        raise CannotServe(
            f"host {host!r}: an IPv6 address; legal: a name or IPv4 address of this machine, as 127.0.0.1"
        )
    return addresses[0]


def _take(probes: contextlib.ExitStack, held: contextlib.ExitStack, host: str, name: str, port: int) -> int:
    probe, claim = probes.enter_context(socket.socket()), held.enter_context(socket.socket(socket.AF_UNIX))
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Triton: a restart must not wait for TIME_WAIT
    try:
        probe.bind((host, port))
        chosen = int(probe.getsockname()[1])
        # Seconds pass until Triton listens. This name is the kernel's, and gone with this process.
        claim.bind(f"\0triptych {host}:{chosen}")
    except (OSError, OverflowError) as error:
        mend = f"choose another with --{name}-port (0 takes a free one)"
        raise CannotServe(f"port {port} on {host}: {error.args[-1]}; {mend}") from None
    return chosen


def find_package(name: str) -> Path:
    """The folder of an installed package, found without importing it.

    Raises:
        CannotServe: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise CannotServe(f"{name} is not installed here; {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def find_triton() -> Path:
    """The folder of the Triton to run: the one that `TRIPTYCH_TRITON_HOME` names, or the wheel's.

    Raises:
        CannotServe: there is none, or it has no stub for this Python.
    """
    named = os.environ.get(TRITON_HOME)
    home = Path(named) if named else find_package("pytriton") / "tritonserver"
    if not (home / "bin/tritonserver").is_file():
        mend = f"{TRITON_HOME} names a folder like /opt/tritonserver" if named else f"reinstall it: {INSTALL}"
        raise CannotServe(f"{home} holds no Triton; {mend}")
    if not _fits(_stub(home)):
        whose = home if named else "the nvidia-pytriton wheel"
        raise CannotServe(f"{whose} has no stub for Python {_python_version()}; use another Python")
    return home


def _python_version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _stub(home: Path) -> Path:
    """The wheel has one for every Python, NVIDIA's images have one for their own."""
    one_of_many = home / "python_backend_stubs" / _python_version() / STUB
    return one_of_many if one_of_many.is_file() else home / BACKEND / STUB


def _fits(stub: Path) -> bool:
    """Whether it loads the library of this Python; another's would not see our packages."""
    return stub.is_file() and f"libpython{_python_version()}.so".encode() in stub.read_bytes()


@contextmanager
def run_folder() -> Iterator[Path]:
    """A private folder for one run, locked while its supervisor lives. What killed ones left behind goes first.

    Raises:
        CannotServe: no folder for temporary files has a path that Triton can take, or it became full.
    """
    base = _base()
    _sweep_leftovers(base)
    try:
        with _locked_folder(base) as run:
            yield run
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CannotServe(f"{base}: {error.strerror}; TMPDIR names a folder for a run's files") from None


@contextmanager
def _locked_folder(base: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=RUN_PREFIX, dir=base, ignore_cleanup_errors=True) as name:
        lock = os.open(name, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(lock)


def _base() -> Path:
    """Where folders of runs go: TMPDIR, or a usual place where Triton could not take that path or run its stub from it."""
    bases = Path(tempfile.gettempdir()), *FALLBACKS
    for base in bases:
        plain, writable = _PLAIN.fullmatch(str(base)), os.access(base, os.W_OK | os.X_OK)
        if plain and writable and not os.statvfs(base).f_flag & os.ST_NOEXEC:
            return base
    raise CannotServe(
        f"no folder for a run's files in {', '.join(map(repr, map(str, bases)))}; TMPDIR must name one whose path has letters, "
        "digits and /.+,=@%_- only, and that can be written to and run from"
    )


def _sweep_leftovers(base: Path) -> None:
    for folder in base.glob(f"{RUN_PREFIX}*"):
        with contextlib.suppress(OSError):
            _sweep_if_abandoned(folder)


def _sweep_if_abandoned(folder: Path) -> None:
    state = folder.lstat()
    if state.st_uid != os.getuid() or time.time() - state.st_mtime < 10:  # a new one may not be locked yet
        return
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _end_processes(folder)
        remove_shm(folder.name)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _end_processes(run: Path) -> None:
    """Kill what still runs the stub of a run whose supervisor is gone."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] == [str(run / BACKEND / STUB)]:
                process.kill()


def remove_shm(prefix: str, used_by: Iterable[int] = ()) -> None:
    """Unlink the shared-memory regions of one run, but for those that these processes have mapped."""
    mapped = "".join(_maps(process) for process in used_by)
    for region in SHM.glob(f"{prefix}_*"):
        if str(region) not in mapped:
            region.unlink(missing_ok=True)


def _maps(process: int) -> str:
    with contextlib.suppress(OSError):  # it has just ended
        return Path(f"/proc/{process}/maps").read_text()
    return ""


def lay_out(run: Path) -> None:
    """Put what Triton needs into the run's folder: backend, stub, this Python's library and the serving package.

    Links, but for what Triton and Python change: Triton sets a stub's mode anew when it could not start it, which only its owner
    may, and Python writes what it compiles beside the file that it was told of.
    """
    home, backend, library = find_triton(), run / BACKEND, run / "lib"
    backend.mkdir(parents=True)
    library.mkdir()
    for private in (IMAGES, ADAPTERS, RECORDS):
        (run / private).mkdir(mode=0o700)
    # The stubs ignore PYTHONPATH, but the backend's folder is on their sys.path.
    sources = [*(home / BACKEND).iterdir(), find_package("triptych_serving"), find_package("triptych_contract")]
    for source in sources:
        if source.name == "__pycache__":
            shutil.copytree(source, backend / source.name)
        elif source.name != STUB:
            (backend / source.name).symlink_to(source)
    shutil.copyfile(_stub(home), backend / STUB)
    (backend / STUB).chmod(0o755)
    # The wheel's looks for its libraries from its own place; an image's has them where the loader finds them.
    (run / "wheel.libs").symlink_to(_stub(home).resolve().parent / "../../../../nvidia_pytriton.libs")
    if shared := _libpython():
        (library / shared.name).symlink_to(shared)


def _libpython() -> Path | None:
    """This interpreter's shared library: the loader may find none, or that of another patch release."""
    name = str(sysconfig.get_config_var("INSTSONAME"))
    folders = (Path(sys.base_prefix, "lib"), Path(str(sysconfig.get_config_var("LIBDIR"))))
    return next((folder / name for folder in folders if ".so" in name and (folder / name).is_file()), None)


def environment(run: Path, cache_mb: float, adapters: AdapterFolder | None = None) -> dict[str, str]:
    """The stubs take their interpreter, and with it the site-packages, from the first `python3` on PATH.

    ONNX Runtime's wheels report what they run to their makers unless told not to; whoever wants that may say so.
    """
    ahead = {"PATH": str(Path(sys.executable).parent), "LD_LIBRARY_PATH": f"{run / 'lib'}:{run / 'wheel.libs'}"}
    merged = {key: os.pathsep.join(filter(None, (first, os.environ.get(key)))) for key, first in ahead.items()}
    cache = {"TRIPTYCH_CACHE_DIR": str(run / IMAGES), "TRIPTYCH_CACHE_MB": str(cache_mb)}
    worn = of_adapters(run, adapters) if adapters else {}
    inherited = {name: value for name, value in os.environ.items() if name not in cache and name != FOLDER}
    ours = {**(cache if cache_mb else {}), **worn, record.FOLDER: str(run / RECORDS), proofs.KEY: secrets.token_hex(32)}
    return {"ORT_DISABLE_TELEMETRY": "1", **inherited, **merged, **ours}


def of_adapters(run: Path, adapters: AdapterFolder) -> dict[str, str]:
    """Give what tells the models of a run where adapters are."""
    return {FOLDER: str(adapters.path.absolute()), SHELF: str(run / ADAPTERS), MEGABYTES: str(adapters.megabytes)}


def command(run: Path, addresses: Addresses, grace_s: float, cache_mb: float, secret: str) -> list[str]:
    """Triton's command line; `cache_mb` for finished images, a quarter of it for encoded prompts.

    Who sends `secret` as the header `KEY` may load and unload models.
    """
    home = find_triton()
    closed = f"{_CLOSED}:{KEY}={secret}"
    options = {
        "model-repository": run / "repository",
        "backend-directory": run / "backends",
        "model-control-mode": "explicit",  # a model whose process died is loaded anew
        "load-model": "*",
        "exit-on-error": "true",
        "exit-timeout-secs": int(grace_s) + 5,  # beyond ours: the supervisor ends the grace
        "http-address": addresses.host,
        "http-port": addresses.http_port,
        "grpc-address": addresses.host,
        "grpc-port": addresses.grpc_port,
        "metrics-address": addresses.host,
        "metrics-port": addresses.metrics_port,
        "metrics-config": "summary_latencies=true",  # quantiles of whole requests, which sums cannot give
        "grpc-http2-min-recv-ping-interval-without-data": 20_000,  # our client asks after a silent server every minute
        "http-restricted-api": closed,
        "grpc-restricted-protocol": closed,
    }
    prompts = max(MIN_CACHE_BYTES, int(cache_mb * 1e6 / 4))
    shm = {"region-prefix-name": f"{run.name}_", "default-byte-size": 1 << 20, "growth-byte-size": 1 << 20}
    return [
        str(home / "bin/tritonserver"),
        "--disable-auto-complete-config",  # saves a second stub a model, 1.5 s; our configurations are complete
        *(f"--{name}={value}" for name, value in options.items()),
        *([f"--cache-directory={home / 'caches'}", f"--cache-config=local,size={prompts}"] if cache_mb else []),
        *(f"--backend-config=python,shm-{name}={value}" for name, value in shm.items()),
    ]
