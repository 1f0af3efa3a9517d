"""A door: Triton's gRPC at one address, passed on to the server that should have it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from triptych_contract.verbs import LOOP

from . import sums
from .asked import Asked, read
from .book import Book

SERVICE = "inference.GRPCInferenceService"
INFER, STATISTICS = "ModelInfer", "ModelStatistics"
# What any server may answer for all. What changes a server, or reads this machine's memory, is not passed on.
ASKED_OF_ANY = ("ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "RepositoryIndex")
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
# A door remembers so many of the jobs that it has sent or found.
JOBS = 100_000
LOOK_S = 0.05
WAIT_S = 600.0
BIND_S = 20.0
NONE = "no server is ready there (the cluster has none)"

Context = Any  # grpc.aio.ServicerContext: grpc has no types
Code = grpc.StatusCode


class Door:
    """Passes Triton's calls on.

    Args:
        book: of the servers.
        wake: called while no server is there, so that one is started.
    """

    def __init__(self, book: Book, wake: Callable[[], Awaitable[None]]) -> None:
        self._book, self._wake = book, wake
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._jobs: OrderedDict[str, str] = OrderedDict()  # id → server

    async def listen(self, host: str, port: int) -> tuple[grpc.aio.Server, int]:
        """Answer at an address, whose port it gives; 0 takes a free one.

        Raises:
            RuntimeError: the address is still another's after `BIND_S` seconds, as it is a door's that goes.
        """
        server = grpc.aio.server(options=[*UNLIMITED, ("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, self._methods())])
        ends = time.monotonic() + BIND_S
        while True:
            try:
                bound = int(server.add_insecure_port(f"{host}:{port}"))
                break
            except RuntimeError:
                if time.monotonic() > ends:
                    raise
                await asyncio.sleep(LOOK_S)
        await server.start()
        return server, bound

    def _methods(self) -> dict[str, grpc.RpcMethodHandler]:
        """What answers each method; messages are bytes, in and out, and any other method is UNIMPLEMENTED."""
        unary = {
            "ModelInfer": self._infer,
            "ServerLive": self._live,
            "ServerReady": self._ready,
            STATISTICS: self._statistics,
            **{name: self._passing(name) for name in ASKED_OF_ANY},
        }
        methods = {name: grpc.unary_unary_rpc_method_handler(answer) for name, answer in unary.items()}
        return {**methods, "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(self._stream)}

    async def _live(self, _: bytes, _context: Context) -> bytes:
        return bytes(service_pb2.ServerLiveResponse(live=True).SerializeToString())

    async def _ready(self, _: bytes, _context: Context) -> bytes:
        return bytes(service_pb2.ServerReadyResponse(ready=bool(self._book.servers)).SerializeToString())

    def _passing(self, method: str) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def passed(raw: bytes, context: Context) -> bytes:
            return await self._somewhere(Asked(), method, raw, context)

        return passed

    async def _infer(self, raw: bytes, context: Context) -> bytes:
        try:
            request = service_pb2.ModelInferRequest.FromString(raw)
        except DecodeError as error:
            await _abort(context, _error(Code.INVALID_ARGUMENT, f"no ModelInferRequest ({error})"))
        asked = read(request)
        if request.model_name == LOOP and asked.action in ("watch", "cancel"):
            return await self._of_a_job(asked, raw, context)
        if request.model_name == LOOP and asked.action == "stats":
            return await self._sum(sums.loops, INFER, raw, context)
        return await self._somewhere(asked, INFER, raw, context)

    async def _stream(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """One after the other; an error is the stream's next message, as Triton has it."""
        async for raw in requests:
            answer = service_pb2.ModelStreamInferResponse()
            try:
                answer.infer_response.ParseFromString(await self._infer(raw, _Quiet(context)))
            except grpc.RpcError as error:
                answer.error_message = error.details()
            yield answer.SerializeToString()

    async def _somewhere(self, asked: Asked, method: str, raw: bytes, context: Context) -> bytes:
        """Ask one server after another, the best first, until one has answered or none is left."""
        tried: set[str] = set()
        last: grpc.aio.AioRpcError | None = None
        while name := await self._next(asked, tried, wait=last is None):
            self._book.sent(name, asked)
            if asked.id:
                self._remember(asked.id, name)
            try:
                return await self._call(name, method, raw, context)
            except grpc.aio.AioRpcError as error:
                if error.code() is not Code.UNAVAILABLE:
                    await _abort(context, error)
                last = error
                tried.add(name)
                if "retry_after_s" not in (error.details() or ""):  # it is gone, and not only full
                    self._book.suspect(name)
        return await _abort(context, last or _error(Code.UNAVAILABLE, NONE))

    async def _next(self, asked: Asked, tried: set[str], *, wait: bool) -> str | None:
        """Choose a server, and wait for the first where there is none."""
        name = self._book.choose(asked, tried)
        if name is None and wait:
            waking, ends = asyncio.ensure_future(self._wake()), time.monotonic() + WAIT_S
            try:
                while (name := self._book.choose(asked)) is None and time.monotonic() < ends:
                    await asyncio.sleep(LOOK_S)
            finally:
                waking.cancel()
        return name

    async def _of_a_job(self, asked: Asked, raw: bytes, context: Context) -> bytes:
        """Ask the server that is known to have a job, else all at once: the first that knows it is believed."""
        known = self._jobs.get(asked.id, "")
        error = _error(Code.UNAVAILABLE, NONE)
        for names in ([known] if known in self._book.servers else [], list(self._book.servers)):
            asking = [asyncio.ensure_future(self._named(name, raw, context)) for name in names]
            try:
                for answering in asyncio.as_completed(asking):
                    try:
                        name, answer = await answering
                    except grpc.aio.AioRpcError as refused:
                        error = refused if error.code() is Code.UNAVAILABLE else error  # who is there knows better
                        continue
                    self._remember(asked.id, name)
                    return answer
            finally:
                for task in asking:
                    task.cancel()
        return await _abort(context, error)

    async def _named(self, name: str, raw: bytes, context: Context) -> tuple[str, bytes]:
        return name, await self._call(name, INFER, raw, context)

    async def _statistics(self, raw: bytes, context: Context) -> bytes:
        return await self._sum(sums.statistics, STATISTICS, raw, context)

    async def _sum(self, add: Callable[[Sequence[bytes]], bytes], method: str, raw: bytes, context: Context) -> bytes:
        """The figures of all servers that answer, added up."""
        calls = [self._call(name, method, raw, context) for name in self._book.servers]
        answers = [one for one in await asyncio.gather(*calls, return_exceptions=True) if isinstance(one, bytes)]
        return add(answers) if answers else await self._somewhere(Asked("stats"), method, raw, context)

    async def _call(self, name: str, method: str, raw: bytes, context: Context) -> bytes:
        if name not in self._book.servers:
            raise _error(Code.UNAVAILABLE, f"server {name} has left the cluster")
        address = self._book.servers[name].address
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(
                address, options=[*UNLIMITED, ("grpc.enable_http_proxy", 0)]
            )
        headers = [(key, value) for key, value in context.invocation_metadata() or () if key == "traceparent"]
        passed = self._channels[address].unary_unary(f"/{SERVICE}/{method}")
        answer: bytes = await passed(raw, timeout=context.time_remaining(), metadata=headers)
        return answer

    def _remember(self, id: str, name: str) -> None:
        self._jobs[id] = name
        self._jobs.move_to_end(id)
        while len(self._jobs) > JOBS:
            self._jobs.popitem(last=False)


class _Quiet:
    """A stream's context, on which an abort is an error of one message and not the stream's end."""

    def __init__(self, context: Context) -> None:
        self.time_remaining, self.invocation_metadata = context.time_remaining, context.invocation_metadata

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        """Raise the error."""
        raise _error(code, details)


async def _abort(context: Context, error: grpc.aio.AioRpcError) -> NoReturn:
    await context.abort(error.code(), error.details() or "")
    raise error  # which an abort does already


def _error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
