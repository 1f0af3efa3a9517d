"""What the caller of an export may choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from .errors import ExportError


@dataclass(frozen=True)
class Options:
    """None means what the folder or diffusers say."""

    name: str | None = None
    num_inference_steps: int | None = None
    # SDXL's
    refiner: Path | None = None
    guidance_scale: float | None = None
    samplers: Sequence[str] | None = None  # "euler", or "euler:karras" for one schedule
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
        for field in fields(self):
            if field.name not in ("name", "num_inference_steps", *own) and getattr(self, field.name) is not None:
                flag = f"--{field.name.replace('_', '-')}".replace("--samplers", "--sampler")
                raise ExportError(f"{flag}: {getattr(self, field.name)} given; not an option of {family} folders")
