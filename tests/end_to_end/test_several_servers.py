"""Two real servers behind one name, without anything in front: pictures in turn, verbs where the job is."""

from __future__ import annotations

import asyncio
import socket

import pytest

from triptych import AsyncClient
from triptych_demo import demo_builds
from triptych_server import Server

from .. import plain

LONG = {"width": 256, "height": 256, "num_inference_steps": 100}
NAME = "pictures.example"


@pytest.fixture(scope="module")
def second(demo):
    """A server at another address with the same port."""
    with Server(
        demo_builds(), host="127.0.0.2", grpc_port=demo.grpc_port, http_port=0, metrics_port=0, cache_mb=0
    ) as server:
        yield server


@pytest.fixture
def name(second, monkeypatch):
    """What both are called."""
    asked = socket.getaddrinfo

    def lookup(host, port, *rest, **more):
        if host != NAME:
            return asked(host, port, *rest, **more)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (at, port)) for at in ("127.0.0.1", "127.0.0.2")]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return f"dns:///{NAME}:{second.addresses.grpc_port}"


def running(*addresses):
    return [plain.verb(address, "stats")["running"] for address in addresses]


async def test_verbs_go_where_the_job_is(name, demo, second):
    async with AsyncClient(name) as client:
        jobs = [client.submit("a 3d rocket", seed=seed, **LONG) for seed in range(6)]
        for job in jobs:
            for _ in range(2):
                assert (await job.status())["status"] in ("queued", "running")
        assert await asyncio.to_thread(running, demo.grpc, second.addresses.grpc) == [3, 3]
        assert await asyncio.gather(*(job.cancel() for job in jobs)) == [True] * 6
        assert await asyncio.to_thread(running, demo.grpc, second.addresses.grpc) == [0, 0]


async def test_a_server_that_is_gone_is_left_out(name, demo, second):
    expected = (await asyncio.to_thread(plain.grpc, demo.grpc, prompt="a fox", seed=1, num_inference_steps=2))["image"]
    await asyncio.to_thread(second.stop)
    async with AsyncClient(name, timeout=60) as client:
        drawn = [await client.generate("a fox", seed=1, num_inference_steps=2) for _ in range(4)]
    assert {one.data for one in drawn} == {expected}
