"""The pipelines that there are, and the one of a build."""

from __future__ import annotations

from typing import Any

from .manifest import Manifest
from .pipeline import Pipeline
from .sdxl.pipeline import Sdxl
from .stable_cascade.pipeline import StableCascade

PIPELINES: dict[str, type[Pipeline[Any, Any]]] = {one.family.name: one for one in (Sdxl, StableCascade)}


def pipeline(manifest: Manifest) -> Pipeline[Any, Any]:
    """Make the pipeline of a build."""
    return PIPELINES[manifest.family](manifest)
