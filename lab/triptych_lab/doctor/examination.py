"""Run all checks on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from triptych_lab.doctor import gpu, machine, software
from triptych_lab.doctor.finding import Finding


@dataclass(frozen=True)
class Ports:
    """Where `serve` would listen; 0 takes a free port."""

    host: str = "127.0.0.1"
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    @property
    def options(self) -> dict[str, int]:
        """The ports by the options of `triptych serve` that set them."""
        return {"--http-port": self.http, "--grpc-port": self.grpc, "--metrics-port": self.metrics}


def examine(builds: Path, ports: Ports) -> Iterator[Finding]:
    """Run all checks, yielding each finding at once. They start only `tritonserver --help`, `nvidia-smi` and imports.

    Args:
        builds: the folder that exports are to go to.
    """
    yield software.system()
    yield software.python()
    yield software.packages()
    yield software.triton()
    yield software.onnxruntime()
    yield software.exporter()
    yield gpu.gpus()
    yield gpu.tensorrt()
    yield gpu.cuda()
    yield machine.disk(builds)
    yield machine.temporary()
    yield machine.shared_memory()
    yield machine.memory()
    yield machine.processors()
    yield machine.ports(ports.host, ports.options)
    yield machine.open_files()
    yield machine.clock()
