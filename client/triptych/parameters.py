"""What may be asked for beside the prompt, for editors and type checkers. What is legal, the server says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from .pictures import Picture


class _Shared(TypedDict, total=False):
    negative_prompt: str | None
    """What not to draw. Leaving it out and giving an empty text may differ."""
    seed: int | None
    """0 … 2⁶³−1; the same seed makes the same picture. Default: any."""
    num_inference_steps: int | None
    """Steps, for Stable Cascade those of Stage B; default: the model's."""
    height: int | None
    """Pixels; default: the model's, or those of an `init_image`."""
    width: int | None
    """Pixels; default: the model's, or those of an `init_image`."""
    output_format: str | None
    """`png`, `jpeg` or `webp`. Default: `png`."""
    deadline_ms: int | None
    """Milliseconds that the server may take from the request's arrival; `timeout` sets it otherwise."""
    tenant: str | None
    """Whom the request belongs to; default: the client's."""
    cancel_on_disconnect: bool | None
    """Stop the job when its watcher goes away. Default: False."""


class _Sdxl(TypedDict, total=False):
    guidance_scale: float | None
    """0 … 50, how closely to follow the prompt; at 1 or below guidance is off. Default: the model's."""
    guidance_rescale: float | None
    """0 … 1, how much of the guided prediction's contrast is taken back. Default: 0."""
    guidance_end: float | None
    """0 … 1, the share of the model calls that guidance is on for. Default: 1."""
    clip_skip: int | None
    """Last layers of the text encoders to leave out. Default: 0."""
    original_size: Sequence[int] | None
    """(height, width) that the model is told the picture had. Default: the picture's."""
    target_size: Sequence[int] | None
    """(height, width) that the model is told the picture gets. Default: the picture's."""
    crops_coords_top_left: Sequence[int] | None
    """(top, left) where the model is told the picture was cut. Default: (0, 0)."""
    sampler: str | None
    """As `euler` or `dpmpp_2m`; `Client.describe` lists them. Default: the model's."""
    schedule: str | None
    """As `karras`; each sampler has its own. Default: the model's."""
    init_image: Picture | None
    """The picture to start from: a PNG, JPEG or WebP file (its path or its bytes) or a PIL image."""
    mask: Picture | None
    """White is painted anew, black is kept; given as `init_image`, which it needs."""
    strength: float | None
    """0 … 1, how far to go from `init_image`, which it needs. Default: 0.3, with `mask` 0.9999."""
    denoising_end: float | None
    """Over 0, under 1, where the base hands over to the refiner; needs a model with one. Default: no refiner."""
    aesthetic_score: float | None
    """0 … 10, what the refiner is told; needs `denoising_end`. Default: 6."""
    negative_aesthetic_score: float | None
    """0 … 10, what the refiner is told of the negative prompt; needs `denoising_end`. Default: 2.5."""


class _Cascade(TypedDict, total=False):
    prior_num_inference_steps: int | None
    """Steps of Stage C, 1 … 100; default: the model's."""
    prior_guidance_scale: float | None
    """0 … 50, how closely Stage C follows the prompt; at 1 or below guidance is off. Default: the model's."""
    decoder_guidance_scale: float | None
    """0 … 50, the same for Stage B."""


class Parameters(_Shared, _Sdxl, total=False):
    """The inputs of `sdxl`. Each may be left out; None is the same."""


class CascadeParameters(_Shared, _Cascade, total=False):
    """The inputs of `stable_cascade`. Each may be left out; None is the same."""


class AnyParameters(_Shared, _Sdxl, _Cascade, total=False):
    """What the client's methods take; it refuses by name what its model does not have, before anything is sent."""
