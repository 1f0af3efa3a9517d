"""The cluster's applications for a configuration file of Ray Serve's, as KubeRay's RayService has one.

Each takes the same `args`: `Options` by name, with `serving` and `front` as objects.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triptych_api.app import Options as FrontOptions

from . import app
from .deployments import Serving

JOBS = "TRIPTYCH_API_JOBS"
PATHS = ("keys", "config")


def servers(args: Mapping[str, Any]) -> Any:
    """Make the application of the servers."""
    return app.servers(_options(args))


def doors(args: Mapping[str, Any]) -> Any:
    """Make the application of the doors."""
    return app.doors(_options(args))


def fronts(args: Mapping[str, Any]) -> Any:
    """Make the application of the HTTP fronts; where their jobs are may be the environment's word, for it has a password."""
    return app.fronts(_options(args))


def _options(args: Mapping[str, Any]) -> app.Options:
    given = _tuples(args)
    made: dict[str, Any] = {"address": "auto", **given, "serving": Serving(**_tuples(given.get("serving", {})))}
    if (front := given.get("front")) is not None:
        read: dict[str, Any] = {"jobs": os.environ.get(JOBS) or None, **_tuples(front)}
        read |= {name: Path(read[name]) for name in PATHS if read.get(name)}
        made["front"] = FrontOptions(**read)
    options = app.Options(**made)
    options.check()
    return options


def _tuples(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
