"""Tests of what only a GPU can show: `make test-gpu`. Elsewhere none of them is collected."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from triptych_demo import demo_builds
from triptych_export.tensorrt.library import capabilities_here
from triptych_server import Server
from triptych_serving import runtimes
from triptych_serving.manifest import Manifest

from ..engines import planned

collect_ignore_glob = [] if capabilities_here() else ["test_*.py"]


@pytest.fixture(scope="session")
def target() -> str:
    """TensorRT proper where it is installed, since it runs on every GPU that TensorRT-RTX does."""
    return "tensorrt" if importlib.util.find_spec("tensorrt") else "tensorrt-rtx"


@pytest.fixture(scope="session")
def builds(target: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo models with engines for this GPU, by family. Building takes a minute or two."""
    folder, capability = tmp_path_factory.mktemp("gpu"), runtimes.machine(target).capability
    return {one.name: planned(one, folder / one.name, [capability], target=target) for one in demo_builds()}


@pytest.fixture(scope="session")
def manifests(builds: dict[str, Path]) -> dict[str, Manifest]:
    return {name: Manifest.load(build) for name, build in builds.items()}


@pytest.fixture(scope="session", params=[False, True], ids=["fast", "reproducible"])
def gpu(request: pytest.FixtureRequest, builds: dict[str, Path]) -> Iterator[str]:
    """The gRPC address of a server on this GPU."""
    with Server(
        [*builds.values()], http_port=0, grpc_port=0, metrics_port=0, cache_mb=0, reproducible=request.param
    ) as server:
        yield server.addresses.grpc
