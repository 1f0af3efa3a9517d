"""What the caller of an export may choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from .errors import ExportError

EVERYONES = (
    "target",
    "compute_capabilities",
    "precisions",
    "calibration_prompts",
    "engine_store",
    "name",
    "num_inference_steps",
)


@dataclass(frozen=True)
class ExportOptions:
    """None means what the folder or diffusers say."""

    target: str = "cpu"  # or "cuda", which takes `precisions`, or "tensorrt", "tensorrt-rtx", which take the next four
    compute_capabilities: Sequence[str] = ()  # "sm89", …; none for the GPU that is here
    precisions: Mapping[str, str] = field(default_factory=dict)  # by stage: "fp32", "fp16", "bf16", "fp8"
    calibration_prompts: Sequence[str] | None = None  # for fp8; None for `calibration.PROMPTS`
    engine_store: Path | None = None
    name: str | None = None
    num_inference_steps: int | None = None
    # SDXL's
    refiner: Path | None = None
    guidance_scale: float | None = None
    adapters: int | None = None  # the largest sum of their ranks
    ip_adapter: Sequence[str] | None = None  # "NAME=FILE", safetensors
    image_encoder: Path | None = None  # a folder of CLIPVisionModelWithProjection, which those need
    control: Sequence[str] | None = None  # "NAME=FOLDER" of each ControlNet, of a union "NAME=FOLDER:MODE"
    samplers: Sequence[str] | None = None  # "euler", or "euler:karras" for one schedule
    lora: Sequence[str] | None = None  # files to fuse, "FILE" or "FILE:WEIGHT"
    distilled: str | None = None  # how the weights were distilled: a name in `sdxl.recipe.DISTILLED`
    # Stable Cascade's
    decoder: Path | None = None
    prior_num_inference_steps: int | None = None
    prior_guidance_scale: float | None = None
    decoder_guidance_scale: float | None = None
    size: int | None = None  # the model's own height and width

    def check(self, family: str, own: Sequence[str]) -> None:
        """Refuse what is not `own`ed by the family; the name and the number of steps are everyone's.

        Raises:
            ExportError: an option of another family is given; names it.
        """
        for option in fields(self):
            if option.name not in (*EVERYONES, *own) and getattr(self, option.name) is not None:
                flag = f"--{option.name.replace('_', '-')}".replace("--samplers", "--sampler")
                raise ExportError(f"{flag}: {getattr(self, option.name)} given; not an option of {family} folders")
