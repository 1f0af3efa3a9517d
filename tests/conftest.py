"""What tests share: the real server with the demo models, which keeps no finished images, and exports of random tiny models."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from triptych_demo import demo_builds
from triptych_server import Addresses, Server

from . import tiny_builds

# Files that take minutes, to be begun first: where two run beside each other none is left for the end.
LONG = (
    "parity/test_sdxl.py",
    "export/test_export.py",
    "end_to_end/test_random_requests.py",
    "export/test_optimum.py",
    "export/test_cascade_export.py",
    "export/test_odd_weights.py",
    "parity/test_stable_cascade.py",
    "tensorrt/test_engines.py",
)
BESIDE = "PYTEST_XDIST_WORKER" in os.environ  # another process runs other tests of the same suite


def pytest_configure() -> None:
    """Give each of several processes a folder of its own for what servers leave."""
    if BESIDE:
        os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix=os.environ["PYTEST_XDIST_WORKER"])


def pytest_unconfigure() -> None:
    """Take that folder away."""
    if BESIDE:
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first, where the order decides when the last test ends."""
    if BESIDE:
        items.sort(key=lambda item: [not str(item.path).endswith(name) for name in LONG])


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
    return tiny_builds.exported(_shared(tmp_path_factory) / "tiny", tiny_builds.build, tiny_builds.EVERY)


@pytest.fixture(scope="session")
def tiny_cascade(tmp_path_factory: pytest.TempPathFactory) -> tiny_builds.Folders:
    """Folders of the prior's weights and of the build of Stable Cascades by seed."""
    made = _shared(tmp_path_factory) / "tiny-cascade"
    return tiny_builds.exported(made, tiny_builds.build_cascade, tiny_builds.CASCADES)


def _shared(factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of the suite, whichever of its processes asks."""
    own = factory.getbasetemp()
    return own.parent if BESIDE else own
