"""Triptych's client: pictures from a Triton server over gRPC. Never imports torch.

from triptych import Client

with Client("localhost:8001") as client:
    client.generate("a 3d render of a red apple", seed=7).save("out")
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from .async_client import AsyncClient, AsyncJob
from .errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RequestCancelled,
    ServerError,
    ServerUnavailable,
    TriptychError,
)
from .parameters import AnyParameters, CascadeParameters, Parameters
from .sync_client import Client, Job
from .types import Completed, Event, GeneratedImage, InProgress, Queued

try:
    __version__ = version("triptych")
except PackageNotFoundError:  # a checkout on sys.path that was never installed
    __version__ = "0+unknown"

__all__ = [
    "AnyParameters",
    "AsyncClient",
    "AsyncJob",
    "CascadeParameters",
    "Client",
    "Completed",
    "DeadlineExceeded",
    "Event",
    "GeneratedImage",
    "InProgress",
    "InvalidRequest",
    "Job",
    "Overloaded",
    "Parameters",
    "Queued",
    "RequestCancelled",
    "ServerError",
    "ServerUnavailable",
    "TriptychError",
    "__version__",
]
