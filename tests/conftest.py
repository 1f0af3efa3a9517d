"""What tests share: the real server with the demo models, which keeps no finished images, and exports of random tiny models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from triptych_demo import demo_builds
from triptych_server import Addresses, Server

from . import tiny_builds


@pytest.fixture(scope="session")
def demo() -> Iterator[Addresses]:
    """Addresses of a server with the demo models."""
    with Server(demo_builds(), http_port=0, grpc_port=0, metrics_port=0, cache_mb=0) as server:
        yield server.addresses


@pytest.fixture
def url(demo: Addresses) -> str:
    """The gRPC address of the demo server."""
    return demo.grpc


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tiny_builds.Folders:
    """Folders of weights and build of SDXLs by seed."""
    return tiny_builds.exported(tmp_path_factory.mktemp("tiny"), tiny_builds.build, tiny_builds.SEEDS)


@pytest.fixture(scope="session")
def tiny_cascade(tmp_path_factory: pytest.TempPathFactory) -> tiny_builds.Folders:
    """Folders of the prior's weights and of the build of Stable Cascades by seed."""
    made = tmp_path_factory.mktemp("tiny-cascade")
    return tiny_builds.exported(made, tiny_builds.build_cascade, tiny_builds.CASCADES)
