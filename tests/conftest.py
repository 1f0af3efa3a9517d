"""The real server with the demo models, once for all tests that only ask it things. It keeps no finished images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from triptych.demo import demo_builds
from triptych.server import Addresses, Server


@pytest.fixture(scope="session")
def demo() -> Iterator[Addresses]:
    """Addresses of a server with the demo models."""
    with Server(demo_builds(), http_port=0, grpc_port=0, metrics_port=0, cache_mb=0) as server:
        yield server.addresses


@pytest.fixture
def url(demo: Addresses) -> str:
    """The gRPC address of the demo server."""
    return demo.grpc
