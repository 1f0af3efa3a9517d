"""Start servers for measurements: on free ports, without a cache, and if wanted with another policy in the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from triptych_demo import demo_builds
from triptych_server import CannotServe, Server
from triptych_server.supervisor import prepare
from triptych_serving.policy import Policy

from .errors import BenchError

ROOT = Path(__file__).parents[2]
STARTS = 3
# Appended to the loop's model.py. Its `Policy` is looked up after the whole module has run, so the later import wins.
_OTHER_POLICY = """

# Of the benchmark: the same loop under another policy.
import sys

sys.path.insert(0, {root!r})
from {policy.__module__} import {policy.__name__} as Policy
"""


@dataclass(frozen=True)
class Served:
    """A running server: its gRPC address and its ensembles."""

    url: str
    ensembles: list[str]


@contextmanager
def started(
    builds: Sequence[Path] = (), policy: type[Policy] | None = None, adapters: Path | None = None
) -> Iterator[Served]:
    """Run a server of `builds` (default: the demo) until the end of the block; `policy` replaces the loop's own.

    Raises:
        BenchError: the server does not start.
    """
    chosen = list(builds) or demo_builds()
    fill: Callable[[Sequence[Path], Path], None] = prepare if policy is None else partial(with_policy, policy)
    server = _start(
        lambda: Server(chosen, http_port=0, grpc_port=0, metrics_port=0, cache_mb=0, prepare=fill, adapters=adapters)
    )
    with ExitStack() as stack:
        stack.callback(server.stop)
        yield Served(server.addresses.grpc, _ensembles(server.addresses.grpc))


def _start(make: Callable[[], Server], starts: int = STARTS) -> Server:
    """Start a server, trying again if it fails: on a busy machine Triton's stubs may give up waiting for each other."""
    try:
        return make().start()
    except CannotServe as error:
        if starts > 1:
            return _start(make, starts - 1)
        raise BenchError(f"the server does not start: {error}") from error


def with_policy(policy: type[Policy], builds: Sequence[Path], repository: Path) -> None:
    """Prepare a model repository in which the loop has this policy."""
    prepare(builds, repository)
    model = repository / "denoise/1/model.py"
    model.write_text(model.read_text("utf-8") + _OTHER_POLICY.format(root=str(ROOT), policy=policy), "utf-8")


def _ensembles(url: str) -> list[str]:
    from triptych import Client

    with Client(url) as client:
        return list(client.models())
