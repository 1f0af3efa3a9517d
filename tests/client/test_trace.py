"""A trace that the caller is in goes along to the server."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from triptych import AsyncClient
from triptych.transport import TRACE

from .least_triton import Triton


class Seeing(Triton):
    """Notes what came beside each request."""

    def __init__(self):
        super().__init__(loading=0)
        self.seen = []

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        self.seen.append(dict(context.invocation_metadata()).get("traceparent"))
        return super().ModelInfer(request, context)


@pytest.fixture
def seeing():
    triton, server = Seeing(), grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    triton.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield triton
    server.stop(None)


async def test_each_request_has_the_trace_of_its_own_caller(seeing):
    traces = [f"00-{k:032x}-00f067aa0ba902b7-01" for k in (1, 2)]

    async def drawn(client, trace):
        TRACE.set({"traceparent": trace})
        await client.generate("a fox")

    async with AsyncClient(seeing.address) as client:
        await asyncio.gather(*(asyncio.create_task(drawn(client, trace)) for trace in traces))
        assert sorted(seeing.seen) == traces
        await client.generate("a fox")
    assert seeing.seen[-1] is None
