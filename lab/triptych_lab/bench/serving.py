"""Servers for measurements: free ports, no cache, and where asked for another policy in the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from triptych_demo import demo_builds
from triptych_server import Server, ServerError
from triptych_server.supervisor import prepare
from triptych_serving.policy import Policy

from .errors import BenchError

ROOT = Path(__file__).parents[2]
STARTS = 3
# The model's module takes the name when it is loaded, and so the last of two meanings.
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
def started(builds: Sequence[Path] = (), policy: type[Policy] | None = None) -> Iterator[Served]:
    """A server of `builds` (default: the demo) until the end of the block; with `policy` in the place of the loop's own.

    Raises:
        BenchError: it does not start.
    """
    chosen = list(builds) or demo_builds()
    fill: Callable[[Sequence[Path], Path], None] = prepare if policy is None else partial(with_policy, policy)
    server = _start(lambda: Server(chosen, http_port=0, grpc_port=0, metrics_port=0, cache_mb=0, prepare=fill))
    with ExitStack() as stack:
        stack.callback(server.stop)
        yield Served(server.addresses.grpc, _ensembles(server.addresses.grpc))


def _start(make: Callable[[], Server], starts: int = STARTS) -> Server:
    """A started server. Triton's stubs give up waiting for each other where a machine is too busy, so more than one try."""
    try:
        return make().start()
    except ServerError as error:
        if starts > 1:
            return _start(make, starts - 1)
        raise BenchError(f"the server does not start: {error}") from error


def with_policy(policy: type[Policy], builds: Sequence[Path], repository: Path) -> None:
    """Prepare a model repository whose loop runs under `policy`."""
    prepare(builds, repository)
    model = repository / "denoise/1/model.py"
    model.write_text(model.read_text("utf-8") + _OTHER_POLICY.format(root=str(ROOT), policy=policy), "utf-8")


def _ensembles(url: str) -> list[str]:
    from triptych import Client

    with Client(url) as client:
        return list(client.models())
