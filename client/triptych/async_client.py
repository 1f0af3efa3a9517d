"""`AsyncClient`: one request, one picture; a watch beside it for those who want to see it grow."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

from . import request
from .errors import DeadlineExceeded, InvalidRequest, ServerUnavailable, TriptychError
from .transport import Transport, TritonTransport
from .types import Completed, Event, GeneratedImage, InProgress, Queued

# Waits before the second and third attempt, in seconds, each taken half to whole at random.
RETRIES_S = (0.5, 2.0)
# The server ends a request at its deadline; the call itself waits this much longer for the server's own words.
GRACE_S = 2.0
# A long poll that hears nothing for this long has lost its server.
WATCH_S = 15.0
CANCEL_S = 5.0
MAX_DEADLINE_MS = 2**31 - 1


class AsyncClient:
    """A client of one Triptych server, for one event loop.

    Args:
        url: host:port of the server's gRPC endpoint; `dns:///name:port` balances over all addresses of a name.
        timeout: seconds that a request may take in all, queue and retries included; None waits as long as it takes.
        tenant: whom the requests belong to; tenants are served in turn and cannot see each other's jobs.
        model: the ensemble to ask.
        tls, root_certificates: encrypt, trusting this PEM file rather than the system's authorities.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        timeout: float | None = None,
        tenant: str | None = None,
        model: str = "sdxl",
        tls: bool = False,
        root_certificates: str | None = None,
        transport: Transport | None = None,
    ) -> None:
        self.url, self.timeout, self.tenant, self.model = url, timeout, tenant, model
        self._transport = transport or TritonTransport(url, tls=tls, root_certificates=root_certificates)
        self._jobs: set[AsyncJob] = set()

    async def generate(self, prompt: str, *, timeout: float | None = None, **parameters: Any) -> GeneratedImage:
        """Make one picture. `parameters` are the contract's inputs: `seed`, `num_inference_steps`, `guidance_scale`, …

        Raises:
            TriptychError: one of the tree in `triptych.errors`.
        """
        return await self.submit(prompt, timeout=timeout, **parameters).get()

    async def generate_many(
        self, prompt: str, n: int, *, timeout: float | None = None, **parameters: Any
    ) -> list[GeneratedImage]:
        """Make `n` pictures with seeds seed, seed + 1, …, all in flight at once; in that order."""
        jobs = self.submit_many(prompt, n, timeout=timeout, **parameters)
        try:
            return list(await asyncio.gather(*(job.get() for job in jobs)))
        except BaseException:
            await asyncio.gather(*(job.cancel() for job in jobs), return_exceptions=True)
            raise

    async def stream(self, prompt: str, *, timeout: float | None = None, **parameters: Any) -> AsyncIterator[Event]:
        """Events of one picture, the last of which is `Completed`. Leaving the iteration early cancels the job."""
        job = self.submit(prompt, timeout=timeout, **parameters)
        try:
            async for event in job.iter_events():
                yield event
        finally:
            await job.cancel()

    def submit(self, prompt: str, *, timeout: float | None = None, **parameters: Any) -> AsyncJob:
        """Send a request and return its handle at once.

        Raises:
            InvalidRequest: an unknown parameter, or a value that cannot be sent.
        """
        inputs = request.check({"prompt": prompt, "tenant": self.tenant, **parameters})
        inputs.setdefault("seed", secrets.randbits(32))  # resolved here, so that every attempt makes the same picture
        job = AsyncJob(self._transport, self.model, inputs, self.timeout if timeout is None else timeout)
        self._jobs.add(job)
        job.task.add_done_callback(lambda _: self._jobs.discard(job))
        return job

    def submit_many(self, prompt: str, n: int, *, timeout: float | None = None, **parameters: Any) -> list[AsyncJob]:
        """`submit` for `n` pictures with seeds seed, seed + 1, …"""
        if n < 1:
            raise InvalidRequest(f"n: {n} given; legal: 1 or more")
        first = parameters.pop("seed", None)
        first = secrets.randbits(32) if first is None else first
        return [self.submit(prompt, timeout=timeout, seed=first + k, **parameters) for k in range(n)]

    async def ready(self) -> bool:
        """Whether the server answers and has all its models."""
        return await self._transport.ready()

    async def stats(self) -> dict[str, float]:
        """The loop's figures."""
        return await _verb(self._transport, action=b"stats")

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

    def __init__(self, transport: Transport, model: str, inputs: dict[str, Any], timeout: float | None) -> None:
        self.id = str(uuid.uuid4())
        self.seed: int = inputs["seed"]
        self._transport, self._model, self._inputs = transport, model, inputs
        self._tenant = {"tenant": inputs["tenant"]} if "tenant" in inputs else {}
        self._ends = None if timeout is None else time.monotonic() + timeout
        self.task = asyncio.ensure_future(self._run())

    async def get(self) -> GeneratedImage:
        """The picture, once it is there. A caller that stops waiting cancels the job."""
        try:
            return await asyncio.shield(self.task)
        except asyncio.CancelledError:
            await self.cancel()
            raise

    async def status(self) -> dict[str, Any]:
        """The server's word on the job: status, position, step, num_steps, remaining_s."""
        return await self._watch(-1)

    async def cancel(self) -> bool:
        """Stop the job on the server; False where it had ended."""
        if self.task.done():
            return False
        cancelled = False
        with contextlib.suppress(TriptychError):  # the server may be gone, which ends the job as well
            answer = await _verb(self._transport, CANCEL_S, action=b"cancel", id=self.id.encode(), **self._tenant)
            cancelled = bool(answer["cancelled"])
        if not self.task.done():
            await asyncio.wait([self.task], timeout=0.5 if cancelled else 0)
        self.task.cancel()
        return cancelled

    async def iter_events(self) -> AsyncIterator[Event]:
        """`Queued` and `InProgress` as they come, then `Completed`; the job's error where it fails.

        A watch that fails costs events, never the picture.
        """
        since = -1
        while not self.task.done():
            watch = asyncio.ensure_future(self._watch(since))
            try:
                await asyncio.wait([self.task, watch], return_when=asyncio.FIRST_COMPLETED)
                if self.task.done():
                    break
                state = watch.result()
                since = state["seq"]
                if event := _event(state):
                    yield event
            except TriptychError:
                await asyncio.wait([self.task], timeout=random.uniform(0.2, 0.5))  # noqa: S311 - no secret
            finally:
                watch.cancel()
        yield Completed(await self.get())

    async def _run(self) -> GeneratedImage:
        for pause in (*RETRIES_S, None):
            try:
                return await self._attempt()
            except ServerUnavailable as error:
                wait = None if pause is None else pause * random.uniform(0.5, 1)  # noqa: S311 - no secret
                left = self._left()
                if wait is None or not error.nothing_accepted or (left is not None and left <= wait):
                    raise
                await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _attempt(self) -> GeneratedImage:
        left, inputs = self._left(), dict(self._inputs)
        if left is not None:
            if left <= 0:
                raise DeadlineExceeded("timeout: passed before the request could be sent", self.id)
            inputs.setdefault("deadline_ms", min(MAX_DEADLINE_MS, max(1, round(left * 1000))))
        answer = await self._transport.infer(
            self._model,
            inputs,
            ("image", "resolved_seed", "receipt"),
            request_id=self.id,
            timeout_s=None if left is None else left + GRACE_S,
        )
        receipt = json.loads(answer["receipt"])
        return GeneratedImage(
            data=bytes(answer["image"]),
            format=receipt["output_format"],
            seed=int(answer["resolved_seed"]),
            timings=receipt.pop("timings"),
            receipt=receipt,
            request_id=self.id,
        )

    def _left(self) -> float | None:
        return None if self._ends is None else self._ends - time.monotonic()

    async def _watch(self, since: int) -> dict[str, Any]:
        return await _verb(self._transport, WATCH_S, action=b"watch", id=self.id.encode(), since=since, **self._tenant)


async def _verb(transport: Transport, timeout_s: float = CANCEL_S, **inputs: Any) -> dict[str, Any]:
    answer = await transport.infer("denoise", inputs, ("report",), timeout_s=timeout_s)
    report: dict[str, Any] = json.loads(answer["report"])
    return report


def _event(state: dict[str, Any]) -> Queued | InProgress | None:
    if state["status"] == "queued":
        return Queued(state["position"] or 0)
    if state["status"] == "running":
        return InProgress(state["step"], state["num_steps"], state["remaining_s"])
    return None
