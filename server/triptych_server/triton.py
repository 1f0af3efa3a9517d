"""One running tritonserver and its stubs: how it is started, whether it lives, what its log says."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import psutil

from triptych_server.failures import ENDED_S, TOLD_S, Answers, Stalls, lost_gpu
from triptych_server.layout import KEY, RECORDS, AdapterFolder, Addresses, CannotServe, command, environment, remove_shm
from triptych_serving import record

# `prctl(PR_SET_PDEATHSIG, SIGKILL)` survives exec. A launcher sets it, since code between fork and exec is unsafe in a
# process with threads; it leaves at once when the supervisor is gone already.
_LAUNCHER = """import ctypes, os, resource, sys
ctypes.CDLL(None).prctl(1, 9)
resource.setrlimit(resource.RLIMIT_STACK, tuple(map(int, sys.argv[2:4])))
os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[4], sys.argv[4:])"""
# Of each of Triton's threads, which takes what it uses: 72 bytes for every bracket of JSON within others.
STACK_BYTES = 512 * 2**20
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_NEVER = "2"  # memory that may be used is counted as used
_FATAL = re.compile(rb"^E.*(failed to load '|failed to start |Poll failed|model_repository_manager)")
_ERROR = re.compile(r'^E\S+ \S+ \d+ \S+\] "?(.*?)"?\s*$')
_LOGGED = re.compile(r"[IWEF]\d{4} \d\d:\d\d")
_LOAD_ERROR = re.compile(r"failed to load '([^']+)' version \d+: (?:Internal: )?(?:TritonModelException: )?(.*)", re.S)
LOOP = "denoise"  # the model whose process holds what everybody waits for
NOT_READY = "draining"  # a model that is none
RECEIVED_S, PAGE_S = 0.25, 0.5  # between two looks at the batches that Triton counts; longest for such a page
# Between two looks at the processes that Triton starts, and how many of them one may be dead in: Triton takes note of those that
# end in an orderly way, and waits for the others for ever.
CHILDREN_S, DEAD_LOOKS = 0.25, 4
QUIET_LOOKS = 5  # in which nothing was passed from one model to the next, which takes a few milliseconds
_HARMLESS = "CudaDriverHelper has not been initialized"


def stack_limits(overcommit: Path = _OVERCOMMIT) -> tuple[int, int]:
    """The soft and the hard limit of a stack in bytes, as `setrlimit` takes them: as large as is allowed and costs nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    with contextlib.suppress(OSError):
        if overcommit.read_text().strip() == _NEVER:
            return soft, hard
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return soft, hard
    return (STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)), hard


class Findings(NamedTuple):
    """What a look has found.

    `fatal` says what only a restart of all mends. `broken` are models whose processes alone are to be replaced, and why.
    `told` is worth a line.
    """

    fatal: str
    broken: Mapping[str, str]
    told: Sequence[str]


class Triton:
    """One running tritonserver and its stubs, in a session of their own that dies with the thread that started it."""

    def __init__(
        self,
        run: Path,
        addresses: Addresses,
        grace_s: float,
        cache_mb: float,
        write_log: Callable[[bytes], None],
        adapters: AdapterFolder | None = None,
    ) -> None:
        self._addresses, self._prefix, self._write_log = addresses, run.name, write_log
        self._lines: deque[str] = deque(maxlen=200)
        self._fatal, self._news = threading.Event(), threading.Event()
        self._records, self._stalls, self._answers = run / RECORDS, Stalls(), Answers()
        self._repository = run / "repository"
        self._secret = secrets.token_hex(16)
        self._look_again = self._silent_s = 0.0
        self._hidden, self._lost_gpu = False, ""
        self._replacing = ""
        self._replaced: dict[str, float | None] = {}
        self._work: dict[str, record.Counts] = {}
        self._quiet_looks = 0
        self._look_at_children, self._dead_looks = time.monotonic() + CHILDREN_S, 0
        for left in self._records.iterdir():  # by an earlier life
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        self._stubs: list[tuple[str, psutil.Process]] = []
        launched = os.getpid(), *stack_limits()
        self._process = subprocess.Popen(  # noqa: S603 - our own command line
            [sys.executable, "-ISc", _LAUNCHER, *map(str, launched), *self._command(run, grace_s, cache_mb)],
            env=environment(run, cache_mb, adapters),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._pump = threading.Thread(target=self._read_log, name="triton-log", daemon=True)
        self._pump.start()

    def _command(self, run: Path, grace_s: float, cache_mb: float) -> list[str]:
        return command(run, self._addresses, grace_s, cache_mb, self._secret)

    def _hide_secret(self) -> None:
        """Overwrite it among the arguments, which every user of this machine may read; Triton has copied them before it logs."""
        if self._hidden:
            return
        self._hidden = True
        with contextlib.suppress(OSError, ValueError, IndexError):  # where the kernel does not let us
            stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            begin, end = int(stat[45]), int(stat[46])  # `arg_start`, `arg_end`
            with open(f"/proc/{self._process.pid}/mem", "r+b", buffering=0) as memory:
                memory.seek(begin)
                arguments = memory.read(end - begin)
                memory.seek(begin)
                memory.write(arguments.replace(self._secret.encode(), b"*" * len(self._secret)))

    def _read_log(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        for line in self._process.stdout:
            self._hide_secret()
            self._lines.append(line.decode(errors="replace"))
            if _FATAL.match(line):
                self._fatal.set()
            self._lost_gpu = self._lost_gpu or lost_gpu(line)
            self._news.set()
            with contextlib.suppress(OSError, ValueError):  # no full disk may block Triton
                self._write_log(line)

    def wait_for_news(self, timeout_s: float) -> None:
        """Until Triton logs something, which it does when it gets ready or fails, or the time is over."""
        self._news.wait(timeout_s)
        self._news.clear()

    def running(self) -> bool:
        return self._process.poll() is None

    def doomed(self) -> bool:
        """Whether it ended, waits for the dead, or logged that a model cannot be loaded (it takes seconds more to leave)."""
        return (
            self._fatal.is_set() or not self.running() or self._dead_looks >= DEAD_LOOKS or self._waits_for_the_dead()
        )

    def _waits_for_the_dead(self) -> bool:
        if time.monotonic() < self._look_at_children:
            return False
        self._look_at_children = time.monotonic() + CHILDREN_S
        self._dead_looks = self._dead_looks + 1 if any(_is_zombie(child) for child in self._children()) else 0
        return self._dead_looks >= DEAD_LOOKS

    def _children(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self._process.pid).children()
        return []

    def ready(self) -> bool:
        """Whether all three addresses answer and every model is loaded; from then on its stubs are known."""
        ports = self._addresses.grpc_port, self._addresses.metrics_port
        if not (self._healthy() and all(map(self._listens, ports))):
            return False
        self._stubs = self._find_stubs()
        return bool(self._stubs) and not any(map(_is_zombie, self._children())) and self.running()

    def _healthy(self) -> bool:
        return self._get(self._addresses.http_port, "/v2/health/ready") is not None

    def _find_stubs(self) -> list[tuple[str, psutil.Process]]:
        return [(_model_of(child), child) for child in self._children() if not _is_zombie(child)]

    def _get(self, port: int, path: str, timeout_s: float = 2) -> str | None:
        """A page of Triton's, or None where it cannot be had."""
        status, page = self._ask("GET", port, path, timeout_s)
        return page if status == HTTPStatus.OK else None

    def _ask(
        self, method: str, port: int, path: str, timeout_s: float, headers: Mapping[str, str] = MappingProxyType({})
    ) -> tuple[int, str]:
        """Triton's answer, and its status; 0 and the reason where there is none."""
        connection = http.client.HTTPConnection(self._addresses.reachable, port, timeout=timeout_s)
        try:
            connection.request(method, path, headers=dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)
        finally:
            connection.close()

    def _listens(self, port: int) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((self._addresses.reachable, port), timeout=2):
            return True
        return False

    def look(self) -> Findings:
        """Look once more at what lives, works and answers; this is done every `failures.LOOK_S` seconds."""
        if not self.running():
            return Findings(f"tritonserver ended ({_ending(self._process.returncode)})", {}, ())
        counts = {model: one for model, one in record.read(self._records).items() if model != self._replacing}
        told, broken = self._stalls.look(counts)
        dead = [model for model, stub in self._stubs if model != self._replacing and _has_ended(stub)]
        broken |= {model: f"the process of model {model!r} died" for model in dead}
        # Answers that are mixed up are on their way through the other models: only the end of all keeps them from callers.
        fatal = self._lost(counts, told)
        fatal += [broken[model] for model in dead if self._stalls.stood_still(model)]
        fatal += [why for model, why in broken.items() if not _replaceable(model, counts)]
        if self._silent_s >= ENDED_S:
            fatal.append("tritonserver stands still")
        if self._lost_gpu:
            fatal.append(f"tritonserver has lost the GPU ({self._lost_gpu})")
        return Findings(", ".join(dict.fromkeys(fatal)), broken, told)

    def _lost(self, counts: Mapping[str, record.Counts], told: list[str]) -> list[str]:
        """Looked for at times: Triton's figures take it about a millisecond."""
        if time.monotonic() < self._look_again:
            return []
        page = self._get(self._addresses.metrics_port, "/metrics", PAGE_S)
        self._look_again = time.monotonic() + RECEIVED_S
        before, self._silent_s = self._silent_s, self._silent_s + RECEIVED_S + PAGE_S if page is None else 0.0
        if before < TOLD_S <= self._silent_s:
            told.append(f"tritonserver stands still; it is ended after {ENDED_S:g} s")
        lost = [] if page is None else self._answers.lost(counts, page)
        return [f"Triton took the process of model {model!r} for dead" for model in lost]

    def replace(self, model: str, timeout_s: float) -> None:
        """End a model's process and load the model anew, and with it the ensembles that need it; all other models go on.

        `look` may be called meanwhile, and sees nothing of this model.

        Raises:
            CannotServe: Triton did not load it.
        """
        self._replacing = model
        self._note_replaced(model, None)
        for _, stub in [one for one in self._stubs if one[0] == model]:
            with contextlib.suppress(psutil.Error):
                stub.kill()
        self._control(model, "unload", timeout_s)
        self._answers.begin_anew(model, self._get(self._addresses.metrics_port, "/metrics") or "")
        self._stalls.begin_anew(model)
        self._control(model, "load", timeout_s)
        self._take_note_of(model)
        remove_shm(self._prefix, used_by=[stub.pid for _, stub in self._stubs])  # Triton leaves that of the dead
        self._note_replaced(model, time.monotonic())
        self._replacing = ""

    def _take_note_of(self, model: str) -> None:
        """Of a model's new process; where that is dead already, the old one stays. So do others', which may have died."""
        new = [one for one in self._find_stubs() if one[0] == model]
        self._stubs = [one for one in self._stubs if not new or one[0] != model] + new

    def _note_replaced(self, model: str, back: float | None) -> None:
        self._replaced[model] = back
        record.note_replaced(self._records, self._replaced)

    def _control(self, model: str, action: str, timeout_s: float) -> None:
        status, words = self._ask(
            "POST", self._addresses.http_port, f"/v2/repository/models/{model}/{action}", timeout_s, {KEY: self._secret}
        )
        if status != HTTPStatus.OK:
            raise CannotServe(f"model {model!r}: Triton did not {action} it ({words})")

    def refuse_new(self) -> None:
        """From now on the ensembles' first models turn requests away, and health is not ready; those in flight go on."""
        (self._records / record.DRAINING).touch()
        # A model that cannot be loaded is all that makes Triton say that it is not ready.
        (self._repository / NOT_READY / "1").mkdir(parents=True, exist_ok=True)
        (self._repository / NOT_READY / "config.pbtxt").write_text('backend: "none"')
        with contextlib.suppress(CannotServe):
            self._control(NOT_READY, "load", PAGE_S)

    def cut_off(self) -> None:
        """Have the loop end what it holds."""
        (self._records / record.CUT_OFF).touch()

    def idle(self) -> bool:
        """Whether nothing is in flight, by one more look: between two models a request is nobody's, so one does not tell."""
        work = {model: counts._replace(beats=0, executed=0) for model, counts in record.read(self._records).items()}
        quiet = work == self._work and not any(counts.owed for counts in work.values())
        self._work, self._quiet_looks = work, self._quiet_looks + 1 if quiet else 0
        return not work or self._quiet_looks >= QUIET_LOOKS

    def owes_nothing(self) -> bool:
        """`idle`, and the models keep records by which that is known."""
        return self.idle() and bool(self._work)

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
        """The first errors of the log, or what the models' processes wrote when it names none, or its last lines."""
        self._pump.join(0.5 if not self.running() else 0)
        found = dict.fromkeys(filter(None, map(_explain, self._lines)))
        named = [text for text in found if text.startswith("model ")]
        if found:
            return "\n".join((named or [*found])[:3])
        died = "a model's process died at its start: " if self._dead_looks >= DEAD_LOOKS else ""
        words = [line for line in self._lines if not _LOGGED.match(line)] if died else []
        return died + ("".join((words or [*self._lines])[-5:]).strip() or "it said nothing")

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


def _replaceable(model: str, counts: Mapping[str, record.Counts]) -> bool:
    """Whether no caller of a model's process waits for ever: Triton itself fails the batch that dies with it."""
    return model != LOOP and model in counts and not counts[model].kept


def _model_of(stub: psutil.Process) -> str:
    """The stub's first argument is …/<model>/<version>/model.py."""
    with contextlib.suppress(psutil.Error, IndexError):
        return Path(stub.cmdline()[1]).parent.parent.name
    return "unknown"


def _is_zombie(stub: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(stub.status() == psutil.STATUS_ZOMBIE)
    return False


def _has_ended(stub: psutil.Process) -> bool:
    """A quarter of the work of `_is_gone`, for what is asked of every stub ten times a second."""
    try:
        return bool(stub.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


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
