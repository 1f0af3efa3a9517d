"""`AsyncClient`: one request, one picture; a watch beside it for those who want to see it grow."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import numbers
import random
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from triptych_contract.cards import CardError, ModelCard
from triptych_contract.families import DEFAULT, read_card
from triptych_contract.family import Family
from triptych_contract.settings import OUTPUT_FORMATS

from . import request
from .errors import (
    DeadlineExceeded,
    InvalidRequest,
    RequestCancelled,
    ServerError,
    ServerUnavailable,
    TriptychError,
    invalid,
    of_another_version,
)
from .parameters import AnyParameters
from .patience import Patience, Waits
from .transport import Transport, TritonTransport
from .types import Completed, Event, GeneratedImage, InProgress, Queued

if TYPE_CHECKING:
    from typing_extensions import Unpack

# The server ends a request at its deadline; the call itself waits this much longer for the server's own words.
GRACE_S = 2.0
# A long poll that hears nothing for this long has lost its server.
WATCH_S = 15.0
CANCEL_S = 5.0
# Each denoiser runs batches of every size.
VERIFY_S = 1800.0
MAX_DEADLINE_MS = 2**31 - 1


class AsyncClient:
    """A client of one Triptych server, for one event loop.

    Args:
        url: host:port of the server's gRPC endpoint; `dns:///name:port` balances over all addresses of a name, and
            keeps what is about a job to the server that has it.
        timeout: seconds that a request may take in all, queue and retries included; None waits as long as it takes.
        tenant: whom the requests belong to; tenants are served in turn and cannot see each other's jobs.
        model: the ensemble to ask: a family's name, as `triptych_contract.families` has it, or one of your own that takes
            what the first of them takes.
        patience: how long a call without a timeout waits for a server that is away; with one it waits until that passes.
        tls: encrypt.
        root_certificates: the PEM file to trust rather than the system's authorities; asks for `tls`.
        private_key, certificate_chain: PEM files by which the server knows this client; ask for `tls`.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout: float | None = None,
        tenant: str | None = None,
        model: str = DEFAULT.name,
        patience: Patience = Patience(),  # noqa: B008 - it never changes
        tls: bool = False,
        root_certificates: str | None = None,
        private_key: str | None = None,
        certificate_chain: str | None = None,
        transport: Transport | None = None,
    ) -> None:
        self.url, self.timeout, self.tenant, self.model = url, timeout, tenant, model
        self._patience = patience
        self._card: tuple[Family, ModelCard] | None = None
        self._transport = transport or TritonTransport(
            url,
            tls=tls,
            root_certificates=root_certificates,
            private_key=private_key,
            certificate_chain=certificate_chain,
        )
        self._jobs: set[AsyncJob] = set()

    async def generate(
        self, prompt: str, *, timeout: float | None = None, **parameters: Unpack[AnyParameters]
    ) -> GeneratedImage:
        """Make one picture. `triptych.Parameters` tells what the `parameters` are, `CascadeParameters` Stable Cascade's.

        Raises:
            TriptychError: one of the tree in `triptych.errors`.
        """
        return await self.submit(prompt, timeout=timeout, **parameters).get()

    async def generate_many(
        self, prompt: str, n: int, *, timeout: float | None = None, **parameters: Unpack[AnyParameters]
    ) -> list[GeneratedImage]:
        """Make `n` pictures with seeds seed, seed + 1, …, all in flight at once; in that order."""
        jobs = self.submit_many(prompt, n, timeout=timeout, **parameters)
        try:
            return list(await asyncio.gather(*(job.get() for job in jobs)))
        except BaseException:
            await asyncio.gather(*(job.cancel() for job in jobs), return_exceptions=True)
            raise

    async def stream(
        self,
        prompt: str,
        *,
        timeout: float | None = None,
        previews: bool = False,
        **parameters: Unpack[AnyParameters],
    ) -> AsyncIterator[Event]:
        """Events of one picture, the last of which is `Completed`. Leaving the iteration early cancels the job.

        With `previews`, `InProgress.preview` shows the picture as it grows.
        """
        job = self.submit(prompt, timeout=timeout, **parameters)
        try:
            async for event in job.iter_events(previews=previews):
                yield event
        finally:
            await job.cancel()

    def submit(self, prompt: str, *, timeout: float | None = None, **parameters: Unpack[AnyParameters]) -> AsyncJob:
        """Send a request and return its handle at once.

        Raises:
            InvalidRequest: an unknown parameter, or a value that cannot be sent.
        """
        return self._send(self._inputs(prompt, parameters), self._seconds(timeout))

    def _inputs(self, prompt: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        inputs = request.check(self.model, {"prompt": prompt, "tenant": self.tenant, **parameters})
        if "seed" not in inputs:  # resolved here, so that every attempt makes the same picture
            inputs["seed"] = secrets.randbits(32)
            inputs["use_cache"] = False  # nobody will ask for it again
        return inputs

    def _seconds(self, timeout: float | None) -> float | None:
        seconds = self.timeout if timeout is None else timeout
        number = isinstance(seconds, numbers.Real) and not isinstance(seconds, bool)
        if seconds is not None and not (number and 0 < seconds <= MAX_DEADLINE_MS / 1000):
            raise invalid("timeout", repr(seconds), f"above 0 s, at most {MAX_DEADLINE_MS // 1000} s, or None")
        return seconds

    def _send(self, inputs: dict[str, Any], timeout: float | None) -> AsyncJob:
        job = AsyncJob(self._transport, self.model, inputs, timeout, self._patience)
        self._jobs.add(job)
        job.task.add_done_callback(lambda _: self._retire(job))
        return job

    def submit_many(
        self, prompt: str, n: int, *, timeout: float | None = None, **parameters: Unpack[AnyParameters]
    ) -> list[AsyncJob]:
        """`submit` for `n` pictures with seeds seed, seed + 1, …; nothing is sent where any of them cannot be."""
        if not isinstance(n, int) or n < 1:
            raise invalid("n", repr(n), "a whole number from 1")
        first = self._inputs(prompt, parameters)  # once: a file that is named may change, or be a pipe
        seconds = self._seconds(timeout)
        requests = [{**first, **request.check(self.model, {"seed": first["seed"] + k})} for k in range(n)]
        return [self._send(inputs, seconds) for inputs in requests]

    def _retire(self, job: AsyncJob) -> None:
        self._jobs.discard(job)
        if not job.task.cancelled():
            job.task.exception()  # taken, or asyncio reports a failure that nobody asked about as a defect

    async def ready(self) -> bool:
        """Whether the server answers and has all its models."""
        return await self._transport.ready()

    async def stats(self) -> dict[str, float]:
        """The loop's figures."""
        return await _verb(self._transport, action="stats")

    async def watch(
        self, id: str, *, since: int = -1, previews: bool = False, tenant: str | None = None
    ) -> dict[str, Any]:
        """The server's word on a request, whoever sent it, as soon as its `seq` exceeds `since`: what `AsyncJob.status` gives.

        Raises:
            InvalidRequest: no server has it.
        """
        whose = tenant or self.tenant
        asked = {
            "id": id,
            "since": since,
            **({"tenant": whose} if whose else {}),
            **({"preview": True} if previews else {}),
        }
        return await _verb(self._transport, WATCH_S, action="watch", **asked)

    async def models(self) -> dict[str, Any]:
        """All that the server serves, by ensemble; each as `describe` has it."""
        report = await self._patiently("describe", CANCEL_S)
        try:
            return dict(report["models"])
        except (KeyError, TypeError, ValueError) as error:
            raise of_another_version(error) from None

    async def describe(self) -> dict[str, Any]:
        """This client's model: `model`, `family`, `target`, `build`, `stages`; SDXL's samplers are in `model`.

        Raises:
            InvalidRequest: the server does not serve it.
        """
        served: dict[str, dict[str, Any]] = await self.models()
        if self.model not in served:
            raise invalid("model", self.model, ", ".join(served))
        return served[self.model]

    async def card(self) -> ModelCard:
        """This client's model as the contract reads it: limits, defaults, samplers. Asked for once.

        Raises:
            InvalidRequest: the server does not serve it.
            ServerError: the server is of another version.
        """
        return (await self._served())[1]

    async def check(self, prompt: str, **parameters: Unpack[AnyParameters]) -> None:
        """Judge a request as the server would, without a request; what is damaged inside a picture it alone finds.

        Raises:
            InvalidRequest: has all that is wrong.
        """
        family, card = await self._served()
        given = {"prompt": prompt, "tenant": self.tenant, **parameters}
        request.judge(self.model, given, family.settings, card)

    async def _served(self) -> tuple[Family, ModelCard]:
        if self._card is None:
            try:
                self._card = read_card(await self.describe())
            except CardError as error:
                raise of_another_version(error) from None
        return self._card

    async def verify(self, *, timeout: float | None = None) -> dict[str, Any]:
        """For each denoiser, whether every row has the same bytes in every batch. Takes minutes on large models.

        Raises:
            TriptychError: one of the tree in `triptych.errors`.
        """
        return await self._patiently("verify", self._seconds(timeout) or VERIFY_S)

    async def _patiently(self, action: str, timeout_s: float) -> dict[str, Any]:
        """Ask the loop for what changes nothing, once there is one."""
        waits = Waits(self._patience, _end(self.timeout))
        while True:
            try:
                return await _verb(self._transport, timeout_s, action=action)
            except ServerUnavailable as error:
                await waits.after(error)

    async def close(self) -> None:
        """Cancel what is still in flight and disconnect."""
        await asyncio.gather(*(job.cancel() for job in list(self._jobs)), return_exceptions=True)
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncJob:
    """One request under way. `id` and `seed` are known from the start."""

    def __init__(
        self, transport: Transport, model: str, inputs: dict[str, Any], timeout: float | None, patience: Patience
    ) -> None:
        self.id = str(uuid.uuid4())
        self.seed: int = inputs["seed"]
        self._transport, self._model, self._inputs = transport, model, inputs
        self._server, self._stays, self._bound = transport, False, asyncio.Event()
        self._tenant = {"tenant": inputs["tenant"]} if "tenant" in inputs else {}
        self._ends, self._patience = _end(timeout), patience
        self._sent = False
        self.task = asyncio.ensure_future(self._run())
        self.task.add_done_callback(lambda _: self._bound.set())

    async def get(self) -> GeneratedImage:
        """The picture, once it is there. A caller that stops waiting cancels the job."""
        try:
            await asyncio.wait([self.task])
        except asyncio.CancelledError:
            await self.cancel()
            raise
        if self.task.cancelled():  # by `cancel`; a CancelledError would look as if the caller itself were cancelled
            raise RequestCancelled("cancelled: by this client", self.id)
        return self.task.result()

    async def status(self, *, previews: bool = False) -> dict[str, Any]:
        """The server's word on the job: status, position, stage, step, num_steps, remaining_s; where asked for, preview."""
        return await self._watch(-1, previews=previews)

    async def cancel(self) -> bool:
        """Stop the job, on the server where it is there; False where it had ended. `get` raises RequestCancelled."""
        if self.task.done():
            return False
        cancelled = not self._sent or await self._cancel_on_server()
        if self._sent and not self.task.done():
            await asyncio.wait([self.task], timeout=0.5 if cancelled else 0)
        self.task.cancel()
        return cancelled

    async def _cancel_on_server(self) -> bool:
        """Ask, unless the job ends by itself meanwhile: a server that has never seen it waits for it to come."""
        asked = asyncio.ensure_future(self._ask_to_cancel())
        try:
            await asyncio.wait([self.task, asked], return_when=asyncio.FIRST_COMPLETED)
            return False if self._ended_by_itself() else await asked
        finally:
            asked.cancel()

    def _ended_by_itself(self) -> bool:
        return (
            self.task.done() and not self.task.cancelled() and not isinstance(self.task.exception(), RequestCancelled)
        )

    async def _ask_to_cancel(self) -> bool:
        """Ask until a server knows the job: behind a balanced address others are asked as well."""
        ends = time.monotonic() + CANCEL_S
        with contextlib.suppress(TriptychError):  # the server may be gone, which ends the job as well
            while not self.task.done() and (left := ends - time.monotonic()) > 0:
                with contextlib.suppress(InvalidRequest):
                    answer = await _verb(self._server, left, action="cancel", id=self.id, **self._tenant)
                    return bool(answer["cancelled"])
                await asyncio.sleep(0.05)
        return False

    async def iter_events(self, *, previews: bool = False) -> AsyncIterator[Event]:
        """`Queued` and `InProgress` as they come, then `Completed`; the job's error where it fails.

        A watch that fails costs events, never the picture. `previews` asks for `InProgress.preview`.
        """
        since = -1
        while not self.task.done():
            watch = asyncio.ensure_future(self._watch(since, previews=previews))
            try:
                await asyncio.wait([self.task, watch], return_when=asyncio.FIRST_COMPLETED)
                if self.task.done():
                    break
                state = watch.result()
                since, event = state["seq"], event_of(state)
            except Exception:  # whatever it is
                event = None
                await asyncio.wait([self.task], timeout=random.uniform(0.2, 0.5))  # noqa: S311 - no secret
            finally:
                watch.cancel()
            if event:
                yield event
        yield Completed(await self.get())

    async def _run(self) -> GeneratedImage:
        waits = Waits(self._patience, self._ends)
        while True:
            try:
                return await self._attempt()
            except ServerUnavailable as error:
                await waits.after(error)

    async def _attempt(self) -> GeneratedImage:
        left, inputs = self._left(), dict(self._inputs)
        if left is not None:
            if left <= 0:
                raise DeadlineExceeded("timeout: passed before the request could be sent", self.id)
            inputs.setdefault("deadline_ms", min(MAX_DEADLINE_MS, max(1, round(left * 1000))))
        if not self._stays:
            self._server = await self._transport.one()
        self._bound.set()
        self._sent = True
        try:
            answer = await self._server.infer(
                self._model,
                inputs,
                ("image", "resolved_seed", "receipt"),
                request_id=self.id,
                timeout_s=None if left is None else left + GRACE_S,
            )
        except ServerUnavailable as error:
            self._sent = not error.nothing_accepted
            self._stays = error.lost  # a server that replaces a model knows the job
            raise
        return _picture(answer, self.id)

    def _left(self) -> float | None:
        return None if self._ends is None else self._ends - time.monotonic()

    async def _watch(self, since: int, *, previews: bool = False) -> dict[str, Any]:
        asked = {"id": self.id, "since": since, **self._tenant, **({"preview": True} if previews else {})}
        await self._bound.wait()
        return await _verb(self._server, WATCH_S, action="watch", **asked)


def _end(timeout: float | None) -> float | None:
    """When a timeout passes that begins now."""
    return None if timeout is None else time.monotonic() + timeout


def _picture(answer: dict[str, Any], request_id: str) -> GeneratedImage:
    try:
        receipt = json.loads(answer["receipt"])
        return GeneratedImage(
            data=bytes(answer["image"]),
            format=_format(receipt["output_format"]),
            seed=int(answer["resolved_seed"]),
            timings=receipt.pop("timings"),
            cached=receipt.pop("cached", False),
            receipt=receipt,
            request_id=request_id,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(f"the answer is not Triptych's ({error!r})", request_id) from error


def _format(name: object) -> str:
    if name not in OUTPUT_FORMATS:  # files are named by it
        raise ValueError(f"format {name!r}")
    return str(name)


async def _verb(transport: Transport, timeout_s: float = CANCEL_S, **inputs: Any) -> dict[str, Any]:
    try:
        answer = await transport.infer("denoise", inputs, ("report",), timeout_s=timeout_s)
    except DeadlineExceeded:  # no deadline of the caller's: a server that has gone without a word
        raise ServerUnavailable(f"no answer to {inputs['action']} within {timeout_s:g} s") from None
    report: dict[str, Any] = json.loads(answer["report"])
    return report


def event_of(state: Mapping[str, Any]) -> Queued | InProgress | None:
    if state["status"] == "queued":
        return Queued(state["position"] or 0)
    if state["status"] == "running":
        preview = state.get("preview")
        return InProgress(
            state["step"],
            state["num_steps"],
            state["remaining_s"],
            state.get("stage"),
            base64.b64decode(preview, validate=True) if preview else None,
        )
    return None
