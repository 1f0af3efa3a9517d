"""Between Triton's Python backend and ours: scalars in, arrays out, one place where errors get their codes."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from triptych_contract.errors import InvalidRequest, invalid, to_wire, with_facts
from triptych_contract.families import FAMILIES

from .errors import Cancelled, Lost, Overloaded, RequestError, StageFailed, Stopping
from .manifest import Manifest
from .metrics import METRICS
from .proofs import LEGAL, MADE_BY, PROOF, Proofs
from .record import Record

if TYPE_CHECKING:
    from triptych_contract.parameters import Kind

    from .pipeline import Pipeline

# A model's parameters `build.<family>` lead to the builds that it serves, from its own folder.
BUILD = "build."
# How often Triton is asked whether a caller has gone: each time is a message to its process and back.
ASK_SECONDS = 0.25
# Weight of the newest in the moving average of what requests take.
SMOOTHING = 0.1

log = logging.getLogger(__name__)


class ModelArguments:
    """What Triton tells a model at `initialize`: its config's parameters and the builds it serves, by family."""

    def __init__(self, args: Mapping[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.inputs: list[str] = [tensor["name"] for tensor in config["input"]]
        self.parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"])
        paths = {key.removeprefix(BUILD): path for key, path in self.parameters.items() if key.startswith(BUILD)}
        # In the families' own order: Triton keeps parameters in none.
        self.manifests = {name: Manifest.load(folder / paths[name]) for name in FAMILIES if name in paths}
        errors.begin(config["name"])
        record.begin(config["name"])

    @property
    def reproducible(self) -> bool:
        """Whether an image's bytes must not depend on what else is drawn, whatever that costs."""
        return self.parameters.get("reproducible") == "true"

    @property
    def manifest(self) -> Manifest:
        """Of a model that one family has for itself."""
        (manifest,) = self.manifests.values()
        return manifest

    @property
    def made_by(self) -> dict[str, dict[str, str]]:
        """By family, which of this model's inputs the model of which name makes, and proves to have made."""
        given = {key.removeprefix(MADE_BY): value for key, value in self.parameters.items() if key.startswith(MADE_BY)}
        return {family: json.loads(makers) for family, makers in given.items()}

    def pipelines(self) -> dict[str, Pipeline[Any, Any]]:
        """What is served, by the ensembles' names."""
        from .pipelines import pipeline  # many modules, which a process that only runs a stage does without

        return {name: pipeline(manifest) for name, manifest in self.manifests.items()}


def array(request: Any, name: str) -> NDArray[Any] | None:
    """An input as an array, or None where the caller left it out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def scalars(request: Any, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Read the small inputs that were given: bytes, int, float or bool, or a list of them where their kind has several."""
    arrays = {name: array(request, name) for name in kinds}
    given = {name: _plain(value.reshape(-1)) for name, value in arrays.items() if value is not None and value.size}
    return {name: values if kinds[name].count != 1 else values[0] for name, values in given.items()}


def data(request: Any, name: str) -> bytes:
    """Read a BYTES `[1]` input as it is, b"" where it is missing."""
    return next(iter(files(request, name)), b"")


def files(request: Any, name: str) -> list[bytes]:
    """Read a BYTES input as it is, none where it is missing."""
    given = array(request, name)
    return [] if given is None else [bytes(one) for one in given.reshape(-1)]


def passed_on(request: Any, name: str) -> dict[str, Any]:
    """What one model of an ensemble tells another in a BYTES `[1]` tensor: a document that this server has signed.

    Raises:
        InvalidRequest: somebody else wrote it.
    """
    return proofs.document(name, data(request, name))


def check_id(request: Any, document: Mapping[str, Any]) -> None:
    """Check that settings are this request's: Triton may give a late answer of a process that it took for dead to the next.

    Raises:
        Lost: they are another's.
    """
    if document["id"] != request.request_id():
        raise Lost("tokenizer")


def proven(request: Any, name: str, maker: str, read: Sequence[str]) -> NDArray[Any] | None:
    """An input that `maker` made of what it `read`, row by row; None where it is missing.

    Raises:
        InvalidRequest: somebody else made it.
    """
    given = array(request, name)
    if given is not None:
        proofs.check(name, given, maker, read, array(request, f"{maker}_{PROOF}"))
    return given


def unchanged(request: Any, name: str, codes: Sequence[str]) -> NDArray[Any]:
    """An input of which a document that this server has signed has the codes, row by row.

    Raises:
        InvalidRequest: it is missing, or another.
    """
    given = array(request, name)
    if given is None or proofs.read(given) != codes:
        raise invalid(name, "something else", LEGAL)
    return given


def _plain(values: NDArray[Any]) -> list[Any]:
    """FP32 becomes the shortest decimal that means the same, which is what the caller wrote: 0.7, not 0.699999988."""
    return [float(str(value)) for value in values] if values.dtype == np.float32 else list(values.tolist())


def text(value: Any) -> NDArray[np.object_]:
    """A BYTES `[1]` tensor of a string, bytes, or (as JSON) anything else."""
    data = value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
    return np.array([data], dtype=np.object_)


def response(**arrays: NDArray[Any]) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in arrays.items()])


def proving(maker: str, read: Sequence[str], made: Mapping[str, NDArray[Any]], **more: NDArray[Any]) -> Any:
    """A response with the codes of what `maker` made of what it `read`, row by row; `more` goes without."""
    codes = [b"".join(row) for row in proofs.made(maker, read, list(made.values()))]
    proof = np.frombuffer(b"".join(codes), np.uint8).reshape(len(read), len(made), -1)
    return response(**made, **more, **{PROOF: proof})


class Errors:
    """`triptych_errors_total{stage}`: the errors that a model of ours answered itself.

    Triton counts failures beyond them: requests that it refuses itself, or that it could not pass on.
    """

    def __init__(self) -> None:
        # A metric has one message to Triton in shared memory: of two threads the second frees what Triton reads, and it crashes.
        self._one_at_a_time = threading.Lock()

    def begin(self, model: str) -> None:
        self._family = pb_utils.MetricFamily(
            name="triptych_errors_total",
            description="Errors that a model answered itself",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self._counter = self._family.Metric(labels={"stage": model})

    def count(self) -> None:
        with self._one_at_a_time:
            self._counter.increment(1)


errors = Errors()
record = Record()
proofs = Proofs.of_server()


def noted(
    execute: Callable[[Any, Sequence[Any]], list[Any] | None],
) -> Callable[[Any, Sequence[Any]], list[Any] | None]:
    """A model's `execute` whose ends are counted, as Triton counts the batches that it has had answers to."""

    @functools.wraps(execute)
    def noting(model: Any, requests: Sequence[Any]) -> list[Any] | None:
        try:
            return execute(model, requests)
        finally:
            record.executed()

    return noting


def failure(error: Exception) -> Any:
    """The response that carries an error, under the code its kind has in `errors`."""
    errors.count()
    codes = pb_utils.TritonError
    kinds = {
        InvalidRequest: codes.INVALID_ARG,
        Overloaded: codes.UNAVAILABLE,
        Stopping: codes.UNAVAILABLE,
        Lost: codes.UNAVAILABLE,
        Cancelled: codes.CANCELLED,
    }
    code = kinds.get(type(error), codes.INTERNAL)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(_words(error), code))


def _words(error: Exception) -> str:
    if isinstance(error, InvalidRequest):
        return to_wire(error)
    return with_facts(str(error), error.facts) if isinstance(error, RequestError) and error.facts else str(error)


def answer_each(requests: Sequence[Any], answer: Callable[[Any], Any]) -> list[Any]:
    """One response a request; an error ends its own request only."""
    return [answer_all([request], lambda one: [answer(one[0])])[0] for request in requests]


def answer_together(
    requests: Sequence[Any], read: Callable[[Any], Any], answer: Callable[[Sequence[Any]], list[Any]]
) -> list[Any]:
    """One response a request: what `read` refuses has an error of its own, the others are made together."""
    taken: list[Any] = []
    refused: dict[int, Any] = {}
    for k, request in enumerate(requests):
        try:
            taken.append(read(request))
        except Exception as error:
            refused[k] = failure(error)
    made = iter(answer_all(taken, answer) if taken else ())
    return [refused[k] if k in refused else next(made) for k in range(len(requests))]


def turned_away(requests: Sequence[Any]) -> list[Any]:
    """For an ensemble's first model: the refusals of all requests while the server finishes those in flight, else nothing."""
    if not record.draining():
        return []
    words = "draining: the server stops and takes nothing new; nothing was begun, send it again"
    return [failure(Stopping(words)) for _ in requests]


def answer_all(requests: Sequence[Any], answer: Callable[[Sequence[Any]], list[Any]]) -> list[Any]:
    """One response a request, made together; an error ends all of them."""
    record.take(len(requests))
    responses, passed = _answered(requests, answer)
    record.answer(len(requests), passed=passed)
    return responses


class Pace:
    """What a request takes here, in seconds: a moving average."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    @contextlib.contextmanager
    def watched(self, requests: int = 1) -> Iterator[None]:
        """Do within it what so many requests want; the supervisor sees when it takes too long."""
        begun, usual = time.monotonic(), self._seconds
        with record.work(None if usual is None else usual * requests):
            yield
        seconds = (time.monotonic() - begun) / requests
        self._seconds = seconds if usual is None else usual + SMOOTHING * (seconds - usual)


pace = Pace()


def _answered(requests: Sequence[Any], answer: Callable[[Sequence[Any]], list[Any]]) -> tuple[list[Any], bool]:
    """The responses, and whether they are no errors."""
    try:
        with pace.watched(len(requests)):
            return answer(requests), True
    except Exception as error:
        return [failure(error) for _ in requests], False


class Aside:
    """Does what takes long in threads of its own, in the order of its coming, so that nothing else waits for it.

    What it needs of a request is read before, by the thread that `execute` runs in.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "aside")

    def answer(self, request: Any, make: Callable[[], Any]) -> None:
        """Answer with what `make` returns or raises. Should this process die before, nobody can."""
        record.take(1, kept=True)
        self._pool.submit(_send, request.get_response_sender(), make)

    def do(self, work: Callable[[], None], ends: float | None, late: Callable[[], None]) -> None:
        """Do the work, or what is to be done once it is `ends` o'clock and nobody has begun with it."""
        future = self._pool.submit(work)
        if ends is None:
            return

        def give_up() -> None:
            if future.cancel():
                late()

        timer = threading.Timer(max(0.0, ends - time.monotonic()), give_up)
        timer.daemon = True
        future.add_done_callback(lambda _: timer.cancel())
        timer.start()


def _send(sender: Any, make: Callable[[], Any]) -> None:
    (made,), passed = _answered([None], lambda _: [make()])
    try:
        sender.send(made, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception as error:  # shared memory is full, say: a message may still fit
        passed = False
        with contextlib.suppress(Exception):
            words = failure(StageFailed(f"the answer could not be sent ({error})"))
            sender.send(words, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    finally:
        record.answer(1, passed=passed, kept=True)


class TritonReply:
    """`Reply` over a response sender, which is dropped once it has answered: asking it anything later would crash Triton.

    A caller that has gone is known as such ASK_SECONDS later at the latest.
    """

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._asked = time.monotonic()
        self._owes = False
        self._settings = b""
        self._later: Collection[str] = ()
        self._arrived = 0.0
        self._keep: Callable[[Mapping[str, Any], NDArray[np.float32]], None] = lambda _report, _latents: None

    def owe(self, settings: bytes) -> None:
        """Let the server's stop wait for this answer, a picture of these settings as they were passed on."""
        self._owes, self._settings = True, settings
        record.take(1, kept=True)

    def goes_on_to(self, later: Collection[str], arrived: float) -> None:
        """Name the models that latents go on to, in an ensemble that had begun when it `arrived`."""
        self._later, self._arrived = later, arrived

    def keep_with(self, keep: Callable[[Mapping[str, Any], NDArray[np.float32]], None]) -> None:
        """Have what a picture is made of kept before it goes on."""
        self._keep = keep

    def send(self, report: Mapping[str, Any], latents: NDArray[np.float32] | None = None) -> None:
        if latents is not None:
            self._keep(report, latents)
            if model := record.replaced(self._later, self._arrived):
                self.fail(Lost(model))  # each that asked the dead would wait a second for it, one after the other
                return
        try:
            self._finish(lambda: self._answer(report, latents), passed=True)
        except Exception as error:  # shared memory is full, say: a message may still fit
            self.fail(StageFailed(f"denoise: the answer could not be sent ({error})"))

    def fail(self, error: Exception) -> None:
        try:
            self._finish(lambda: failure(error), passed=False)
        except Exception:
            self._paid(passed=False)  # there is nothing more to be done for it
            log.exception("a caller could not be told: %s", error)

    def is_cancelled(self) -> bool:
        now = time.monotonic()
        if self._sender is None or now - self._asked < ASK_SECONDS:
            return False
        self._asked = now
        return bool(self._sender.is_cancelled())

    def _answer(self, report: Mapping[str, Any], latents: NDArray[np.float32] | None) -> Any:
        if latents is None:
            return response(report=text(dict(report)))
        made = latents[None]
        said = {**report, "of": proofs.of(self._settings), "latents": proofs.read(made)}
        return response(report=text(proofs.signed("report", said)), latents=made)

    def _finish(self, answer: Callable[[], Any], *, passed: bool) -> None:
        self._sender.send(answer(), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        self._sender = None
        self._paid(passed=passed)

    def _paid(self, *, passed: bool) -> None:
        if self._owes:
            self._owes = False
            record.answer(1, passed=passed, kept=True)


class PrometheusMetrics:
    """`Metrics.publish` into Triton's metrics endpoint, from one thread: a metric cannot be told two things at once."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._families = [self._family(name) for name in METRICS]  # Triton forgets a family that nobody holds
        self._metrics = dict(zip(METRICS, (f.Metric(labels=dict(labels)) for f in self._families), strict=True))

    def __call__(self, name: str, value: float) -> None:
        metric = self._metrics[name]
        (metric.set if METRICS[name][0] == "gauge" else metric.increment)(value)

    @staticmethod
    def _family(name: str) -> Any:
        kind, description = METRICS[name]
        kinds = {"gauge": pb_utils.MetricFamily.GAUGE, "counter": pb_utils.MetricFamily.COUNTER}
        return pb_utils.MetricFamily(name=f"triptych_{name}", description=description, kind=kinds[kind])


def cpu_model() -> str:
    """The processor's name, for receipts: bytes are promised equal on the same kind only."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
