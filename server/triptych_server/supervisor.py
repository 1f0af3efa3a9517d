"""`Server`: one thread prepares a run, starts Triton, watches it, restarts it after a crash, drains it at the end."""

from __future__ import annotations

import contextlib
import enum
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from triptych_server.failures import LOOK_S
from triptych_server.layout import AdapterFolder, Addresses, CannotServe, lay_out, of_adapters, run_folder
from triptych_server.triton import Triton

LOOPBACK = "127.0.0.1"
POLL_S = LOOK_S
# While it loads: Triton logs that an address is there a moment before it is.
LOADING_POLL_S = 0.01
EXIT_S = 3.0
CUT_OFF_S = 5.0
MAX_CRASHES, CRASH_WINDOW_S = 5, 60.0
# Triton reaps no process that was killed, so one life of it has so many replacements.
MOST_REPLACED = 1000


class State(enum.Enum):
    """Where a server is in its life."""

    NEW = enum.auto()
    PREPARING = enum.auto()
    LOADING = enum.auto()
    READY = enum.auto()
    REPLACING = enum.auto()
    RESTARTING = enum.auto()
    DRAINING = enum.auto()
    STOPPED = enum.auto()


class Event(NamedTuple):
    """A change of state, and what happened in words."""

    state: State
    text: str


def prepare(
    builds: Sequence[Path],
    repository: Path,
    *,
    reproducible: bool = False,
    adapters: bool = False,
    checking: contextlib.AbstractContextManager[None] = contextlib.nullcontext(),  # noqa: B008 - has no state
) -> None:
    """Check the builds against this machine and their manifests, and lay out the model repository; wait within `checking`.

    With `adapters` their graphs need memory too.

    It leads to the builds by way of links beside it, whose paths Triton's processes can read whatever the builds' own are.
    """
    from triptych_serving.assemble import assemble, by_family
    from triptych_serving.tensorrt.machine import check_engines

    manifests = by_family(builds).values()
    check_engines(manifests, adapters=adapters)
    links = {repository.parent / "builds" / manifest.family: manifest.build.resolve() for manifest in manifests}
    with ThreadPoolExecutor(1) as pool:
        # Beside the rest, to which hashing leaves the interpreter.
        verified = [pool.submit(manifest.verify) for manifest in manifests]
        (repository.parent / "builds").mkdir()
        for link, build in links.items():
            link.symlink_to(build)
        assemble([*links], repository, reproducible=reproducible)
        with checking:
            for each in verified:
                each.result()


class Replacement(NamedTuple):
    """Of one model's process, while Triton loads the model anew."""

    model: str
    begun: float
    loading: Future[None]


class Server:
    """A Triton that serves `builds` until it is stopped. Ports of 0 take free ones. `with` starts and stops it.

    Args:
        builds: a folder that the exporter made, or several of different families.
        log: file that Triton's log is appended to; `forward_logs` copies it to stderr.
        on_event: told of every change of state, from the server's thread.
        prepare: fills the model repository from the builds; the default verifies and assembles.
        load_timeout_s: longest time until ready, at the start and at each restart.
        grace_s: longest drain at a stop.
        cache_mb: megabytes for finished images, and a quarter of that for encoded prompts; 0 keeps nothing.
        adapters: folder of LoRAs that requests may name; a build must have been exported for them.
        adapters_mb: megabytes that those in use may take on the disk of temporary files.
        reproducible: on GPUs, the same bytes whatever else is drawn, which costs shared batches; on processors always so.
    """

    def __init__(
        self,
        builds: Path | Sequence[Path],
        *,
        http_port: int = 8000,
        grpc_port: int = 8001,
        metrics_port: int = 8002,
        host: str = LOOPBACK,
        log: Path | None = None,
        forward_logs: bool = False,
        on_event: Callable[[Event], None] | None = None,
        prepare: Callable[[Sequence[Path], Path], None] | None = None,
        load_timeout_s: float = 600,
        grace_s: float = 30,
        cache_mb: float = 256,
        adapters: Path | None = None,
        adapters_mb: float = 4096,
        reproducible: bool = False,
    ) -> None:
        self._builds = [builds] if isinstance(builds, Path) else list(builds)
        self._log, self._forward = log, forward_logs
        self._wanted = (host, http_port, grpc_port, metrics_port)
        self._on_event, self._prepare, self._reproducible = on_event, prepare, reproducible
        self._load_timeout_s, self._grace_s, self._cache_mb = load_timeout_s, grace_s, cache_mb
        self._adapters = AdapterFolder(adapters, adapters_mb) if adapters else None
        self._addresses: Addresses | None = None
        self._claims = contextlib.ExitStack()  # on the ports
        self._crashes: deque[float] = deque(maxlen=MAX_CRASHES)
        self._in_vain = 0  # starts in a row after which it was not ready
        self._replaced = 0  # processes of single models in this life of Triton
        self._replacement: Replacement | None = None
        self._stopping = threading.Event()
        self._files = threading.Lock()  # held while the run's folder is written to or removed
        self._abandoned = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._supervise, name="triptych-server", daemon=True)
        self.state = State.NEW
        self.failure: CannotServe | None = None

    @property
    def addresses(self) -> Addresses:
        """Where it answers; fixed before anything is loaded and kept over restarts."""
        if self._addresses is None:
            raise CannotServe("the server has not been started")
        return self._addresses

    def begin(self) -> None:
        """Start without waiting.

        Raises:
            CannotServe: a port is in use, or the host is none of this machine's.
        """
        with contextlib.ExitStack() as claims:
            self._addresses = Addresses.choose(*self._wanted, claims)
            self._claims = claims.pop_all()
        self._thread.start()

    def start(self, timeout_s: float | None = None) -> Server:
        """Start and wait until every model is ready.

        Raises:
            CannotServe: as soon as it is known that the start fails; the message names the model or file.
        """
        self._load_timeout_s = timeout_s or self._load_timeout_s
        try:
            self.begin()
            self._wait_for(State.READY, State.STOPPED)
        except BaseException:
            self.kill()
            raise
        if self.failure:
            raise self.failure
        return self

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the service; False when the time ran out first."""
        return self._wait_for(State.STOPPED, timeout_s=timeout_s)

    def watch(self) -> int:
        """Stay until the service ends; the exit code: 0 after a stop, 1 after a failure."""
        self.wait()
        return 1 if self.failure else 0

    def request_stop(self, grace_s: float | None = None) -> None:
        """Begin to drain and return at once. Repeat with a shorter grace to hurry."""
        self._grace_s = self._grace_s if grace_s is None else grace_s
        self._stopping.set()

    def stop(self, grace_s: float | None = None) -> None:
        """Let in-flight requests finish, kill what is left after the grace, leave no process and no shared memory."""
        self.request_stop(grace_s)
        if self._thread.is_alive():
            if self.state != State.PREPARING:
                self._thread.join()
            elif not self._abandoned:
                # It may be hashing a build, which cannot be interrupted: from here on it writes nothing, and the exit removes the
                # folder.
                self._abandoned = self._files.acquire()

    def kill(self) -> None:
        """Stop without grace."""
        self.stop(0)

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop(0 if kind else None)

    def _wait_for(self, *states: State, timeout_s: float | None = None) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.state in states, timeout_s)

    def _move(self, state: State, text: str) -> None:
        with self._changed:
            self.state = state
            self._changed.notify_all()
        if self._on_event:
            with contextlib.suppress(Exception):  # a watcher's defect must not end the service
                self._on_event(Event(state, text))

    def _supervise(self) -> None:
        # Triton dies with the thread that started it, so this one starts it every time and lives as long as it should.
        try:
            with self._files, run_folder() as run, self._open_log() as log:
                self._serve(run, log)
        except Exception as error:
            self.failure = error if isinstance(error, CannotServe) else CannotServe(_words(error))
            self.failure.__cause__ = None if error is self.failure else error
        finally:
            self._claims.close()
            self._move(State.STOPPED, str(self.failure or "stopped"))

    @contextlib.contextmanager
    def _unlocked(self) -> Iterator[None]:
        self._files.release()
        try:
            yield
        finally:
            self._files.acquire()

    def _open_log(self) -> contextlib.AbstractContextManager[BinaryIO | None]:
        return self._log.open("ab", buffering=0) if self._log else contextlib.nullcontext()

    def _serve(self, run: Path, log: BinaryIO | None) -> None:
        self._move(State.PREPARING, f"checking {', '.join(map(str, self._builds))}")
        lay_out(run)
        worn = self._adapters is not None
        fill = self._prepare or partial(
            prepare, reproducible=self._reproducible, adapters=worn, checking=self._unlocked()
        )
        fill(self._builds, run / "repository")
        for words in self._look_at_adapters(run):
            self._move(State.PREPARING, words)
        self._move(State.LOADING, "loading the models")
        death = self._run(run, log, first=True)
        while death:
            self._move(State.RESTARTING, f"{death}; starting again")
            self._back_off(death)
            death = self._run(run, log, first=False)

    def _look_at_adapters(self, run: Path) -> list[str]:
        """Say how many adapters there are, and why others are not served; the models look again at each request."""
        if self._adapters is None:
            return []
        from triptych_serving.adapters.shelf import Shelf
        from triptych_serving.assemble import by_family

        if not self._adapters.path.is_dir():
            raise CannotServe(f"--adapters: {self._adapters.path} is no folder")
        given = of_adapters(run, self._adapters)
        shelves = [Shelf.of_server(manifest, given) for manifest in by_family(self._builds).values()]
        shelf = next(filter(None, shelves), None)
        if shelf is None:
            raise CannotServe("--adapters: no build has graphs for them; triptych export … --adapters RANK makes such")
        served = f"{len(shelf.served())} adapters in {self._adapters.path}"
        return [served, *(f"adapter {name} is not served: {why}" for name, why in shelf.refused().items())]

    def _run(self, run: Path, log: BinaryIO | None, *, first: bool) -> str:
        """One life of Triton; why it ended, empty after a stop."""
        if self._stopping.is_set():
            return ""
        self._in_vain += 1
        self._replaced = 0
        write = partial(self._write, log)
        triton = Triton(run, self.addresses, self._grace_s, self._cache_mb, write, self._adapters)
        with ThreadPoolExecutor(1, "replacement") as pool:
            try:
                return self._load_and_watch(triton, pool)
            except CannotServe as error:
                if first:
                    raise
                return str(error)
            finally:
                self._replacement = None
                triton.kill()  # which ends what the pool may wait for

    def _write(self, log: BinaryIO | None, line: bytes) -> None:
        if log:
            log.write(line)
        if self._forward:
            sys.stderr.write(line.decode(errors="replace"))

    def _load_and_watch(self, triton: Triton, pool: ThreadPoolExecutor) -> str:
        begun = time.monotonic()
        while not triton.ready():
            if triton.doomed():
                raise CannotServe(triton.errors())
            if time.monotonic() - begun > self._load_timeout_s:
                raise CannotServe(f"not ready after {self._load_timeout_s:.0f} s; the log's end:\n{triton.errors()}")
            triton.wait_for_news(LOADING_POLL_S)
            if self._stopping.is_set():
                return ""
        self._in_vain = 0
        self._move(State.READY, f"ready after {time.monotonic() - begun:.1f} s")
        while not self._stopping.wait(POLL_S):
            if death := self._attend(triton, pool):
                return death
        self._drain(triton, pool)
        return ""

    def _attend(self, triton: Triton, pool: ThreadPoolExecutor) -> str:
        """Look once at Triton, tell and mend what was found; why all of it must start again, empty where it need not."""
        found = triton.look()
        for words in found.told:
            self._move(self.state, words)
        if found.fatal:
            return found.fatal
        if self._replacement:
            return self._finish(self._replacement)
        return self._replace(triton, pool, found.broken)

    def _replace(self, triton: Triton, pool: ThreadPoolExecutor, broken: Mapping[str, str]) -> str:
        """Begin with one of these models; the others are found again.

        However often one dies, the others go on: a picture that kills its reader must not end what strangers wait for.
        """
        for model, why in broken.items():
            if self._replaced == MOST_REPLACED:
                return f"{why}, the last of {MOST_REPLACED} that can be replaced alone"
            self._replaced += 1
            loading = pool.submit(triton.replace, model, self._load_timeout_s)
            self._replacement = Replacement(model, time.monotonic(), loading)
            self._move(State.REPLACING, f"{why}; loading this model anew")
            break
        return ""

    def _finish(self, replacement: Replacement) -> str:
        if not replacement.loading.done():
            return ""
        self._replacement = None
        if error := replacement.loading.exception():
            return _words(error)
        seconds = time.monotonic() - replacement.begun
        state = State.DRAINING if self._stopping.is_set() else State.READY
        self._move(state, f"model {replacement.model!r} is back after {seconds:.1f} s")
        return ""

    def _drain(self, triton: Triton, pool: ThreadPoolExecutor) -> None:
        """Triton's own drain ends the later steps of running ensembles, so it comes when nothing is in flight."""
        self._move(State.DRAINING, "finishing the requests in flight")
        begun = time.monotonic()
        triton.refuse_new()
        while (grace_s := self._grace_s) and not triton.idle():
            if death := self._attend(triton, pool):
                raise CannotServe(f"{death}; the requests in flight are lost")
            if time.monotonic() - begun > grace_s:
                self._cut_off(triton, grace_s)
            time.sleep(POLL_S)
        self._leave(triton, begun)

    def _cut_off(self, triton: Triton, grace_s: float) -> None:
        """Leave the loop a moment for its last words to its callers."""
        triton.cut_off()
        ends = time.monotonic() + CUT_OFF_S
        while self._grace_s and time.monotonic() < ends and not triton.idle() and triton.running():
            time.sleep(POLL_S)
        raise _out_of_time(grace_s)

    def _leave(self, triton: Triton, begun: float) -> None:
        pending = time.monotonic()
        triton.terminate()
        # A hurried stop may set the grace to 0 at any moment: one reading a turn, or that would look like time run out.
        while (grace_s := self._grace_s) and triton.running() and not triton.crashed():
            now = time.monotonic()
            pending = pending if triton.unloaded() or triton.owes_nothing() else now
            # Nothing is in flight, but a client's idle stream keeps Triton from leaving, or an ensemble that it failed itself
            # beside other steps, for want of shared memory.
            if now - pending > EXIT_S:
                return
            if now - begun > grace_s:
                raise _out_of_time(grace_s)
            time.sleep(POLL_S)

    def _back_off(self, death: str) -> None:
        """What got ready and died later may do so as often as it likes: strangers must not be able to end the service."""
        if self._in_vain == MAX_CRASHES:
            raise CannotServe(f"{death}; not ready after {MAX_CRASHES} starts, giving up")
        self._crashes.append(time.monotonic())
        self._stopping.wait(0.5 * (2 ** (len(_recent(self._crashes)) - 1) - 1))


def _recent(times: deque[float]) -> list[float]:
    return [at for at in times if at > time.monotonic() - CRASH_WINDOW_S]


def _out_of_time(grace_s: float) -> CannotServe:
    return CannotServe(f"requests were still in flight after {grace_s:g} s and were cut off")


def _words(error: BaseException) -> str:
    """Errors that are meant for people speak for themselves; anything else is a defect and says its type."""
    meant = isinstance(error, CannotServe) or type(error).__name__ == "ManifestError"
    return str(error) if meant else f"{type(error).__name__}: {error}"
