"""The Triton inside the nvidia-pytriton wheel: where it is, how it is started, and one running process of it."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

INSTALL = "pip install 'triptych[server]'"
RUN_PREFIX = "triptych-run-"
STUB = "triton_python_backend_stub"
SHM = Path("/dev/shm")  # noqa: S108 - where Triton keeps its regions; nothing is created here

# `prctl(PR_SET_PDEATHSIG, SIGKILL)` survives exec. A launcher sets it, since code between fork and exec is unsafe in a
# process with threads; it leaves at once when the supervisor is gone already.
_LAUNCHER = """import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"""
_CLOSED = "shared-memory,model-repository,logging,trace"
_FATAL = re.compile(rb"^E.*(failed to load '|failed to start |Poll failed|model_repository_manager)")
_ERROR = re.compile(r'^E\S+ \S+ \d+ \S+\] "?(.*?)"?\s*$')
_LOAD_ERROR = re.compile(r"failed to load '([^']+)' version \d+: (?:Internal: )?(?:TritonModelException: )?(.*)", re.S)
_HARMLESS = "CudaDriverHelper has not been initialized"


class ServerError(Exception):
    """The server cannot start or go on; the message says why and what mends it."""


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

    @classmethod
    def choose(cls, host: str, http: int, grpc: int, metrics: int) -> Addresses:
        """Check that the ports are free; 0 takes any free one.

        Raises:
            ServerError: a port is in use or the host is not this machine's.
        """
        with contextlib.ExitStack() as held:
            wanted = {"http": http, "grpc": grpc, "metrics": metrics}
            chosen = [_bind(held, host, name, port) for name, port in wanted.items()]
        return cls(host, *chosen)


def _bind(held: contextlib.ExitStack, host: str, name: str, port: int) -> int:
    probe = held.enter_context(socket.socket())
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Triton: a restart must not wait for TIME_WAIT
    try:
        probe.bind((host, port))
    except (OSError, OverflowError) as error:
        mend = f"choose another with --{name}-port (0 takes a free one)"
        raise ServerError(f"port {port} on {host}: {error.args[-1]}; {mend}") from None
    return int(probe.getsockname()[1])


def find_package(name: str) -> Path:
    """The folder of an installed package, found without importing it.

    Raises:
        ServerError: it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f"{name} is not installed here; {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def find_triton() -> Path:
    """The wheel's `tritonserver` folder, checked to have a stub for this Python.

    Raises:
        ServerError: the wheel is missing or has no stub for this Python.
    """
    home = find_package("pytriton") / "tritonserver"
    if not (home / "bin/tritonserver").is_file():
        raise ServerError(f"{home} holds no Triton; reinstall it: {INSTALL}")
    if not _stub(home).is_file():
        raise ServerError(f"the nvidia-pytriton wheel has no stub for Python {_python_version()}; use another Python")
    return home


def _python_version() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _stub(home: Path) -> Path:
    return home / "python_backend_stubs" / _python_version() / STUB


@contextmanager
def run_folder() -> Iterator[Path]:
    """A private folder for one run, locked while its supervisor lives. What killed ones left behind goes first."""
    _sweep_leftovers()
    with tempfile.TemporaryDirectory(prefix=RUN_PREFIX, ignore_cleanup_errors=True) as name:
        lock = os.open(name, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(lock)


def _sweep_leftovers() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{RUN_PREFIX}*"):
        with contextlib.suppress(OSError):
            _sweep_if_abandoned(folder)


def _sweep_if_abandoned(folder: Path) -> None:
    state = folder.lstat()
    if state.st_uid != os.getuid() or time.time() - state.st_mtime < 10:  # a new one may not be locked yet
        return
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_shm(folder.name)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def remove_shm(prefix: str) -> None:
    """Unlink the shared-memory regions of one run."""
    for region in SHM.glob(f"{prefix}_*"):
        region.unlink(missing_ok=True)


def lay_out(run: Path) -> None:
    """Link what Triton needs into the run's folder: backend, stub, this Python's library and the serving package."""
    home, backend, library = find_triton(), run / "backends/python", run / "lib"
    backend.mkdir(parents=True)
    library.mkdir()
    # The stubs ignore PYTHONPATH, but the backend's folder is on their sys.path.
    sources = [*(home / "backends/python").iterdir(), _stub(home), find_package("triptych_serving")]
    for source in sources:
        (backend / source.name).symlink_to(source)
    if shared := _libpython():
        (library / shared.name).symlink_to(shared)


def _libpython() -> Path | None:
    """This interpreter's shared library: the loader may find none, or that of another patch release."""
    name = str(sysconfig.get_config_var("INSTSONAME"))
    folders = (Path(sys.base_prefix, "lib"), Path(str(sysconfig.get_config_var("LIBDIR"))))
    return next((folder / name for folder in folders if ".so" in name and (folder / name).is_file()), None)


def environment(run: Path) -> dict[str, str]:
    """The stubs take their interpreter, and with it the site-packages, from the first `python3` on PATH."""
    ahead = {"PATH": str(Path(sys.executable).parent), "LD_LIBRARY_PATH": str(run / "lib")}
    merged = {key: os.pathsep.join(filter(None, (first, os.environ.get(key)))) for key, first in ahead.items()}
    return {**os.environ, **merged}


def command(run: Path, addresses: Addresses, grace_s: float) -> list[str]:
    """Triton's command line."""
    closed = f"{_CLOSED}:triptych-closed={secrets.token_hex(16)}"
    options = {
        "model-repository": run / "repository",
        "backend-directory": run / "backends",
        "model-control-mode": "none",
        "exit-on-error": "true",
        "exit-timeout-secs": int(grace_s) + 5,  # beyond ours: the supervisor ends the grace
        "http-address": addresses.host,
        "http-port": addresses.http_port,
        "grpc-address": addresses.host,
        "grpc-port": addresses.grpc_port,
        "metrics-address": addresses.host,
        "metrics-port": addresses.metrics_port,
        "grpc-http2-min-recv-ping-interval-without-data": 20_000,  # our client asks after a silent server every minute
        "http-restricted-api": closed,
        "grpc-restricted-protocol": closed,
    }
    shm = {"region-prefix-name": f"{run.name}_", "default-byte-size": 1 << 20, "growth-byte-size": 1 << 20}
    return [
        str(find_triton() / "bin/tritonserver"),
        "--disable-auto-complete-config",  # saves a second stub a model, 1.5 s; our configurations are complete
        *(f"--{name}={value}" for name, value in options.items()),
        *(f"--backend-config=python,shm-{name}={value}" for name, value in shm.items()),
    ]


class Triton:
    """One running tritonserver and its stubs, in a session of their own that dies with the thread that started it."""

    def __init__(self, run: Path, addresses: Addresses, grace_s: float, write_log: Callable[[bytes], None]) -> None:
        self._addresses, self._prefix, self._write_log = addresses, run.name, write_log
        self._lines: deque[str] = deque(maxlen=200)
        self._fatal = threading.Event()
        self._stubs: list[tuple[str, psutil.Process]] = []
        self._process = subprocess.Popen(  # noqa: S603 - our own command line
            [sys.executable, "-ISc", _LAUNCHER, str(os.getpid()), *command(run, addresses, grace_s)],
            env=environment(run),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._pump = threading.Thread(target=self._read_log, name="triton-log", daemon=True)
        self._pump.start()

    def _read_log(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        for line in self._process.stdout:
            self._lines.append(line.decode(errors="replace"))
            if _FATAL.match(line):
                self._fatal.set()
            with contextlib.suppress(OSError, ValueError):  # no full disk may block Triton
                self._write_log(line)

    def running(self) -> bool:
        return self._process.poll() is None

    def doomed(self) -> bool:
        """Whether it ended or logged that a model cannot be loaded (Triton itself takes seconds more to leave)."""
        return self._fatal.is_set() or not self.running()

    def ready(self) -> bool:
        """Whether all three addresses answer and every model is loaded; from then on its stubs are known."""
        ports = self._addresses.grpc_port, self._addresses.metrics_port
        if not (self._healthy() and all(map(self._listens, ports))):
            return False
        with contextlib.suppress(psutil.Error):
            self._stubs = [(_model_of(child), child) for child in psutil.Process(self._process.pid).children()]
            return self.running()
        return False

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection(self._addresses.reachable, self._addresses.http_port, timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _listens(self, port: int) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self._addresses.reachable, port), timeout=2):
            return True
        return False

    def death(self) -> str:
        """What died, in words; empty while everything lives."""
        if not self.running():
            return f"tritonserver ended ({_ending(self._process.returncode)})"
        dead = [name for name, stub in self._stubs if _is_gone(stub)]
        return ", ".join(f"the process of model {name!r} died" for name in dead)

    def unloaded(self) -> bool:
        """Whether every stub is gone, as in a drain when nothing is in flight any more."""
        return all(_is_gone(stub) for _, stub in self._stubs)

    def crashed(self) -> bool:
        """Whether a stub died by itself while draining, so that its requests are never answered."""
        zombies = [stub for _, stub in self._stubs if _is_zombie(stub)]
        if zombies:
            time.sleep(0.1)  # Triton reaps at once those that it ended
        return any(map(_is_zombie, zombies))

    def errors(self) -> str:
        """The first errors of the log, or its last lines when it names none."""
        self._pump.join(0.5 if not self.running() else 0)
        found = dict.fromkeys(filter(None, map(_explain, self._lines)))
        named = [text for text in found if text.startswith("model ")]
        return "\n".join((named or [*found])[:3]) or "".join([*self._lines][-5:]).strip() or "Triton logged nothing"

    def terminate(self) -> None:
        """Ask for a drain: in-flight requests finish, new ones are refused."""
        self._process.terminate()

    def kill(self) -> None:
        """End every process of the session at once and remove its shared memory."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + 1
        while not all(_is_gone(stub) for _, stub in self._stubs) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._pump.join(2)
        remove_shm(self._prefix)


def _model_of(stub: psutil.Process) -> str:
    """The stub's first argument is …/<model>/<version>/model.py."""
    with contextlib.suppress(psutil.Error, IndexError):
        return Path(stub.cmdline()[1]).parent.parent.name
    return "unknown"


def _is_zombie(stub: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(stub.status() == psutil.STATUS_ZOMBIE)
    return False


def _is_gone(stub: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        stub.wait(0)  # reaps an orphan when this process is a container's PID 1
    return not stub.is_running() or _is_zombie(stub)


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _explain(line: str) -> str:
    """An error line of Triton's log in plain words: the model and its message, without the traceback."""
    if not (match := _ERROR.match(line)) or _HARMLESS in line:
        return ""
    text = match[1].replace("\\n", "\n").replace('\\"', '"').split("\n\nAt:")[0].strip()
    if load := _LOAD_ERROR.match(text):
        return f"model {load[1]!r}: {load[2].strip()}"
    return text
