"""Triptych's client: pictures from a Triton server over gRPC. Never imports torch.

from triptych import Client

with Client("localhost:8001") as client:
    client.generate("a 3d render of a red apple", seed=7).save("out")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from .patience import Patience
    from .sync_client import Client, Job
    from .types import Completed, Event, GeneratedImage, InProgress, Queued

    __version__: str

# By the module that has them, which is imported at the first use: whoever starts a server needs no client.
_NAMES = {
    "async_client": ("AsyncClient", "AsyncJob"),
    "errors": (
        "DeadlineExceeded",
        "InvalidRequest",
        "Overloaded",
        "RequestCancelled",
        "ServerError",
        "ServerUnavailable",
        "TriptychError",
    ),
    "parameters": ("AnyParameters", "CascadeParameters", "Parameters"),
    "patience": ("Patience",),
    "sync_client": ("Client", "Job"),
    "types": ("Completed", "Event", "GeneratedImage", "InProgress", "Queued"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

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
    "Patience",
    "Queued",
    "RequestCancelled",
    "ServerError",
    "ServerUnavailable",
    "TriptychError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _MODULE_OF:
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triptych")
    except PackageNotFoundError:  # a checkout on sys.path that was never installed
        return "0+unknown"
