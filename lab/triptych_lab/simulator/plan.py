"""Work out from a request's inputs what the loop has to do for it, with the serving code: a build's card and sampler tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from triptych.errors import invalid
from triptych_contract.settings import Settings
from triptych_serving.denoiser import Floats
from triptych_serving.manifest import Manifest, ManifestError
from triptych_serving.noise import TorchGenerator
from triptych_serving.phase import Phase, Start
from triptych_serving.pipeline import Pipeline
from triptych_serving.pipelines import pipeline

# Inputs that do not change how long a request takes.
INDIFFERENT = ("prompt", "negative_prompt", "seed", "output_format")
PROMPT = "a"
# The latents of a simulated job.
NOTHING: Floats = np.zeros((1, 1, 1), np.float32)


@dataclass(frozen=True, eq=False)
class PlannedRequest:
    """A request's settings, and its phases without arrays."""

    settings: Settings
    phases: Sequence[Phase]


class Planner:
    """Plan requests to one build. Requests that take the same time share one plan."""

    def __init__(self, build: Path, *, max_size: int | None = None) -> None:
        """Read a build. `max_size`, in pixels, raises its limit: to plan for large pictures with a small model's tables.

        Raises:
            InvalidRequest: `build` is not a folder that `triptych export` made.
        """
        self._pipeline = _pipeline(build, max_size)
        self._plans: dict[tuple[tuple[str, Any], ...], PlannedRequest] = {}

    @property
    def model(self) -> str:
        """The name of the ensemble that serves the build."""
        return self._pipeline.manifest.family

    def __call__(self, parameters: Mapping[str, Any]) -> PlannedRequest:
        """Plan one request; `parameters` are by the ensemble's input names.

        Raises:
            InvalidRequest: the server would refuse it; with the server's words.
        """
        key = tuple((name, _hashable(value)) for name, value in parameters.items() if name not in INDIFFERENT)
        if key not in self._plans:
            self._plans[key] = self._plan(dict(key))
        return self._plans[key]

    def _plan(self, parameters: Mapping[str, Any]) -> PlannedRequest:
        if "init_image" in parameters:
            raise invalid("init_image", "a picture", "requests that begin with noise")
        settings = self._pipeline.parse({"prompt": PROMPT, "seed": 0, **parameters})
        return PlannedRequest(settings, [Phase(*outline, 1.0, _begin) for outline in self._pipeline.outline(settings)])


def _begin(_generator: TorchGenerator, _previous: Floats | None) -> Start:
    return Start(NOTHING, {})


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _pipeline(build: Path, max_size: int | None) -> Pipeline[Any, Any]:
    try:
        manifest = Manifest.load(build)
    except ManifestError as error:
        raise invalid("build", f"{build} ({error})", "a folder that `triptych export` made") from None
    card = manifest.model
    return pipeline(replace(manifest, model=replace(card, max_size=max(card.max_size, max_size or 0))))
