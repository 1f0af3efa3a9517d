"""The settings of an SDXL request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import checks
from ..cards import SdxlCard, TableCard
from ..errors import InvalidRequest
from ..pictures import Picture
from ..settings import Settings, common, guidance, known

MAX_COORDINATE = 65_536
MAX_AESTHETIC_SCORE = 10.0
# The defaults of diffusers' pipelines for pictures, for pictures with a mask, and for the refiner.
STRENGTH, MASKED_STRENGTH = 0.3, 0.9999
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
# Inputs that mean something only beside another one.
NEEDS = {
    "mask": "init_image",
    "strength": "init_image",
    "aesthetic_score": "denoising_end",
    "negative_aesthetic_score": "denoising_end",
}


@dataclass(frozen=True)
class SdxlSettings(Settings):
    """A checked request. Pairs are (height, width) or (top, left).

    None stands for what was not asked for: no picture to start from (`init_image`, `strength`), no refiner (`denoising_end`,
    the scores).
    """

    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    guidance_end: float
    clip_skip: int
    original_size: tuple[int, int]
    target_size: tuple[int, int]
    crops_coords_top_left: tuple[int, int]
    sampler: str
    schedule: str
    init_image: Picture | None
    mask: Picture | None
    strength: float | None
    denoising_end: float | None
    aesthetic_score: float | None
    negative_aesthetic_score: float | None

    def guided(self, model: SdxlCard) -> bool:
        """Whether there is an unconditional row beside the conditional one, as long as guidance is on."""
        return self.guidance_scale > 1.0 and model.guidance_embedding_dim is None

    @classmethod
    def parse(cls, given: Mapping[str, Any], model: SdxlCard) -> SdxlSettings:
        """Check raw inputs (bytes, int, float, bool, pairs, pictures by name; absent = default) against what `model` can do.

        Raises:
            InvalidRequest: names the field, what was given and what is legal.
        """
        _known(given)
        steps = given.get("num_inference_steps", model.default_num_inference_steps)
        sampler, schedule, table = _sampler(given, model)
        height, width = _size(given, model)
        size = (height, width)
        return cls(
            **common(given),
            num_inference_steps=checks.integer("num_inference_steps", steps, 1, table.max_steps),
            guidance_scale=guidance("guidance_scale", given, model.default_guidance_scale),
            guidance_rescale=checks.number("guidance_rescale", given.get("guidance_rescale", 0.0), 0, 1),
            guidance_end=checks.number("guidance_end", given.get("guidance_end", 1.0), 0, 1),
            clip_skip=checks.integer("clip_skip", given.get("clip_skip", 0), 0, model.max_clip_skip),
            height=height,
            width=width,
            original_size=checks.pair("original_size", given.get("original_size", size), 1, MAX_COORDINATE),
            target_size=checks.pair("target_size", given.get("target_size", size), 1, MAX_COORDINATE),
            crops_coords_top_left=checks.pair(
                "crops_coords_top_left", given.get("crops_coords_top_left", (0, 0)), 0, MAX_COORDINATE
            ),
            sampler=sampler,
            schedule=schedule,
            init_image=given.get("init_image"),
            mask=_mask(given, sampler, table),
            strength=_strength(given, steps),
            denoising_end=_denoising_end(given, model),
            aesthetic_score=_score(given, "aesthetic_score", AESTHETIC_SCORE),
            negative_aesthetic_score=_score(given, "negative_aesthetic_score", NEGATIVE_AESTHETIC_SCORE),
        )


def _known(given: Mapping[str, Any]) -> None:
    known(given, SdxlSettings)
    for name, other in NEEDS.items():
        if name in given and other not in given:
            raise InvalidRequest(name, f"without {other}", f"only together with {other}")


def _sampler(given: Mapping[str, Any], model: SdxlCard) -> tuple[str, str, TableCard]:
    given_name = given.get("sampler", model.default_sampler.encode())
    known = model.sampler_names.get(given_name.decode("utf-8", "replace").lower())
    name = known or checks.choice("sampler", given_name, sorted(model.samplers))
    schedules = model.samplers[name].schedules
    if "schedule" in given:
        schedule = checks.choice("schedule", given["schedule"], schedules)
    else:
        schedule = model.default_schedule if model.default_schedule in schedules else next(iter(schedules))
    return name, schedule, schedules[schedule]


def _mask(given: Mapping[str, Any], sampler: str, table: TableCard) -> Picture | None:
    mask: Picture | None = given.get("mask")
    if mask is not None and not table.inpaint:
        raise InvalidRequest("mask", f"with sampler {sampler}", "any sampler without a hidden state, such as euler")
    return mask


def _strength(given: Mapping[str, Any], steps: int) -> float | None:
    if "init_image" not in given:
        return None
    strength = checks.number("strength", given.get("strength", MASKED_STRENGTH if "mask" in given else STRENGTH), 0, 1)
    if int(steps * strength) < 1:
        raise InvalidRequest(
            "strength", f"{strength:g} of {steps} steps", f"at least {math.ceil(1000 / steps) / 1000}, for one step"
        )
    return strength


def _denoising_end(given: Mapping[str, Any], model: SdxlCard) -> float | None:
    if "denoising_end" not in given:
        return None
    if model.refiner is None:
        raise InvalidRequest(
            "denoising_end", given["denoising_end"], "nothing: this model was exported without a refiner"
        )
    if "mask" in given:
        raise InvalidRequest("denoising_end", "with mask", "only without mask")
    return checks.between("denoising_end", given["denoising_end"], 0, 1)


def _score(given: Mapping[str, Any], field: str, default: float) -> float | None:
    if "denoising_end" not in given:
        return None
    return checks.number(field, given.get(field, default), 0, MAX_AESTHETIC_SCORE)


def _size(given: Mapping[str, Any], model: SdxlCard) -> tuple[int, int]:
    refined = model.refiner is not None and "denoising_end" in given
    multiple = model.refiner.size_multiple if model.refiner and refined else model.size_multiple
    picture: Picture | None = given.get("init_image")
    if picture is None:
        defaults = {"height": model.default_height, "width": model.default_width}
    else:
        defaults = {side: getattr(picture, side) // multiple * multiple for side in ("height", "width")}
    result = {side: int(given.get(side, default)) for side, default in defaults.items()}
    for side, value in result.items():
        if value % multiple or not model.min_size <= value <= model.max_size:
            raise InvalidRequest(side, value, _legal_sizes(value, multiple, model))
    return result["height"], result["width"]


def _legal_sizes(value: int, multiple: int, model: SdxlCard) -> str:
    low, high = -(-model.min_size // multiple) * multiple, model.max_size // multiple * multiple
    below = min(max(value // multiple * multiple, low), high)
    above = min(max(-(-value // multiple) * multiple, low), high)
    nearest = f"{below}" if below == above else f"{below} or {above}"
    return f"multiples of {multiple} from {low} to {high}, the nearest {nearest}"
