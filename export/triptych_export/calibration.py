"""How large a UNet's inner numbers get: pictures are drawn by the serving code, and every product's input is watched."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych_serving.assemble import template
from triptych_serving.denoiser import Denoiser
from triptych_serving.engine import Engine
from triptych_serving.job import Job
from triptych_serving.manifest import Manifest
from triptych_serving.metrics import Metrics
from triptych_serving.ort import OrtDenoiser, OrtStage
from triptych_serving.pipeline import Pipeline
from triptych_serving.pipelines import pipeline
from triptych_serving.policy import Policy
from triptych_serving.tokenizers import PromptTokenizer

from . import fp8
from .errors import ExportError

# Subjects, styles, light and words of many kinds.
PROMPTS = (
    "a photo of an old fisherman mending a net at dawn, 85mm",
    "a watercolour of a village in the mountains, snow, evening light",
    "a flat icon of a red apple on a white background",
    "neon-lit street in the rain, crowds with umbrellas, cinematic, highly detailed",
)
STEPS = 8
GUIDED_ROWS = 2
# Where a refiner takes over.
DENOISING_END = 0.5

Report = Callable[[str, float], None]


def largest_inputs(manifest: Manifest, stage: str, prompts: Sequence[str], report: Report) -> dict[str, float]:
    """The largest magnitude of each product's input in the UNet `stage`, by node name, over one guided picture of the model's
    own size for each prompt.

    Raises:
        ExportError: a picture could not be drawn.
    """
    model = pipeline(manifest)
    with tempfile.TemporaryDirectory(dir=manifest.build) as scratch:
        graph = Path(scratch) / "model.onnx"
        watching = _Watching(graph, fp8.watch(manifest.stage_path(stage), graph))
        others = (name for name in manifest.model.denoisers if name in manifest.stages and name != stage)
        denoisers = {stage: OrtDenoiser(watching), **{name: OrtDenoiser(manifest.stage_path(name)) for name in others}}
        asked = {"denoising_end": DENOISING_END} if stage.startswith("refiner") else {}
        for k, prompt in enumerate(prompts):
            report("calibrating", k / len(prompts))
            _draw(model, denoisers, {"prompt": prompt.encode(), "seed": k, "num_inference_steps": STEPS, **asked})
    return watching.largest


class _Watching(OrtStage):
    """A graph that `fp8.watch` wrote."""

    def __init__(self, path: Path, watched: Iterable[str]) -> None:
        super().__init__(path)
        self.largest = dict.fromkeys(watched, 0.0)

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs = super().__call__(inputs)
        for name, before in self.largest.items():
            self.largest[name] = max(before, float(outputs[name]))
        return outputs


class _Reply:
    """Ends with the latents, which nobody wants."""

    ended = False
    error: Exception | None = None

    def send(self, report: dict[str, Any], latents: Any = None) -> None:  # noqa: ARG002 - `Reply`'s signature
        self.ended = True

    def fail(self, error: Exception) -> None:
        self.ended, self.error = True, error

    def is_cancelled(self) -> bool:
        return False


def _draw(model: Pipeline[Any, Any], denoisers: Mapping[str, Denoiser], given: Mapping[str, Any]) -> None:
    settings, reply = model.parse(given), _Reply()
    encoded = _encoded(model, settings)
    engine = Engine(
        denoisers, Policy(GUIDED_ROWS, dict.fromkeys(denoisers, 0.0)), Metrics(), max_queue_seconds=math.inf
    )
    engine.submit(Job("calibration", settings, model.phases(settings, encoded.get), reply, arrived=time.monotonic()))
    while not reply.ended:
        engine.turn(wait=False)
    if reply.error:
        raise ExportError(f"calibration: {reply.error}")


def _encoded(model: Pipeline[Any, Any], settings: Any) -> dict[str, NDArray[Any]]:
    """What the encoders make of a prompt, by the names that the ensemble gives it."""
    manifest = model.manifest
    tokenizers = [PromptTokenizer.of(manifest, card) for card in manifest.model.tokenizers]
    values: dict[str, NDArray[Any]] = dict(model.encoder_inputs(settings, tokenizers))
    for step in template(manifest.family).ensemble_scheduling.step:
        taken = manifest.stages.get(step.model_name, {}).get("inputs", {})  # not who wears which adapters
        given = {name: value for name, value in step.input_map.items() if name in taken}
        if given and set(given.values()) <= values.keys():
            made = OrtStage(manifest.stage_path(step.model_name))(
                {name: values[value] for name, value in given.items()}
            )
            values |= {value: np.asarray(made[name]) for name, value in step.output_map.items()}
    if getattr(manifest.model, "inpainting", False):  # nothing of a picture is kept
        sizes = (settings.height, settings.width)
        moments = OrtStage(manifest.stage_path("vae_encoder"))({"sample": np.zeros((1, 3, *sizes), np.float32)})
        latents = moments["latent_parameters"]
        values |= {"outside_parameters": latents, "latent_mask": np.ones((1, 1, *latents.shape[2:]), np.float32)}
    return values
