"""What may be asked for beside the prompt, for editors and type checkers. Made from the contract: edit that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from .pictures import Picture


class Shared(TypedDict, total=False):
    """What every family's requests have."""

    negative_prompt: str | None
    """What not to draw. Leaving it out and giving an empty text may differ. UTF-8, at most 16,384 bytes, no control
    characters but tab and line ends. Default: missing."""
    seed: int | None
    """The same seed makes the same picture. 0 … 9223372036854775807. Default: drawn by the server."""
    height: int | None
    """Height in pixels. A size of the model's; an error names the nearest. Default: the model's; with `init_image`
    its own, rounded down, unless `padding_mask_crop` is given."""
    width: int | None
    """Width in pixels. A size of the model's; an error names the nearest. Default: the model's; with `init_image`
    its own, rounded down, unless `padding_mask_crop` is given."""
    output_format: str | None
    """File format. `png`, `jpeg`, `webp`. Default: `png`."""
    deadline_ms: int | None
    """Milliseconds that the server may take, counted from the request's arrival. 1 … 2147483647. Default: none."""
    tenant: str | None
    """Whom the request belongs to: tenants are served in turn and cannot see each other's jobs. UTF-8, at most 128
    bytes, no control characters but tab and line ends. Default: none."""
    cancel_on_disconnect: bool | None
    """Stop the job when its watcher goes away. True or false. Default: false."""
    use_cache: bool | None
    """Answer from the cache of finished files, and keep the file there. True or false. Default: true with a `seed`;
    without one every picture is a new one."""


class Parameters(Shared, total=False):
    """The inputs of `sdxl`. Each may be left out; None is the same."""

    num_inference_steps: int | None
    """Steps. 1 … 100. Default: the model's."""
    guidance_scale: float | None
    """How closely to follow the prompt; at 1 or below guidance is off and a step costs one row, not two. 0 … 50.
    Default: the model's."""
    guidance_rescale: float | None
    """How much of the guided prediction's contrast is taken back. 0 … 1. Default: 0."""
    guidance_end: float | None
    """The share of the model calls, rounded down, that guidance is on for; a step costs one row from there on. 0 …
    1. Default: 1."""
    clip_skip: int | None
    """Last layers of the text encoders to leave out. 0 … one less than the layers of the shorter encoder. Default:
    0."""
    original_size: Sequence[int] | None
    """The size that the model is told the picture had. Height, width, 1 … 65,536. Default: the picture's size."""
    target_size: Sequence[int] | None
    """The size that the model is told the picture gets. Height, width, 1 … 65,536. Default: the picture's size."""
    crops_coords_top_left: Sequence[int] | None
    """Where the model is told the picture was cut. Top, left, 0 … 65,536. Default: 0, 0."""
    sampler: str | None
    """As euler or dpmpp_2m; `triptych samplers` lists them. The samplers that were exported. Default: the model's."""
    schedule: str | None
    """Noise schedule, as karras; each sampler has its own. The sampler's own. Default: the model's."""
    init_image: Picture | None
    """The picture to start from: PNG, JPEG or WebP. A PNG, JPEG or WebP file, at most 32 MiB and 64 megapixels.
    Default: none."""
    mask: Picture | None
    """White is painted anew, black is kept. A PNG, JPEG or WebP file, at most 32 MiB and 64 megapixels. Default:
    none."""
    strength: float | None
    """How far to go from the picture. 0 … 1. Default: 0.3; with `mask` 0.9999."""
    denoising_end: float | None
    """The share of the steps after which the base hands over to the refiner. Over 0, under 1. Default: base only."""
    aesthetic_score: float | None
    """What the refiner is told of the prompt. 0 … 10. Default: 6."""
    negative_aesthetic_score: float | None
    """What the refiner is told of the negative prompt. 0 … 10. Default: 2.5."""
    prompt_syntax: str | None
    """How prompts are read: as they are, or with A1111's weights and as many words as one likes. `plain`, `a1111`.
    Default: `plain`."""
    lora: Sequence[Mapping[str, Any]] | str | None
    """Adapters (LoRAs) of the server's folder, whose effects add up; the base wears them, a refiner does not. At
    most 8, each with a scale of -4 … 4, else 1. Default: none."""
    mask_blur: int | None
    """How softly the mask ends: the radius, in its own pixels, of the Gaussian that blurs it before all else. 0 …
    256. Default: 0."""
    padding_mask_crop: int | None
    """Paint only the part of the picture around the mask, with so many pixels more at each side, at `height` ×
    `width`, and lay it over the picture, which keeps its own size. 0 … 4096. Default: none."""
    extend: Sequence[int] | None
    """How many pixels to add at each edge of the picture, which are painted anew. Left, top, right, bottom, 0 …
    4,096. Default: none."""
    ip_adapter_image: Picture | None
    """A picture to draw like: its middle square is an image prompt beside the text. A PNG, JPEG or WebP file, at
    most 32 MiB and 64 megapixels. Default: none."""
    ip_adapter: str | None
    """The image prompt (IP-Adapter) that reads the picture. The names given to `--ip-adapter`. Default: the model's
    first."""
    ip_adapter_scale: float | None
    """How closely to follow the picture; from 1 on it says more than the text. 0 … 2. Default: 1."""
    control: Sequence[Mapping[str, Any]] | str | None
    """Controls (ControlNets) of the model, which add up: each follows a picture of `control_images`; a refiner goes
    without. At most 4, each with a scale of 0 … 4, else 1, and a start and an end of 0 … 1, else the whole way.
    Default: none."""
    control_images: Sequence[Picture] | None
    """The pictures that controls follow: edges, depth, a pose, ready as the control wants them. 1 … 4 files, each a
    PNG, JPEG or WebP file, at most 32 MiB and 64 megapixels. Default: none."""


class CascadeParameters(Shared, total=False):
    """The inputs of `stable_cascade`. Each may be left out; None is the same."""

    prior_num_inference_steps: int | None
    """Stage C's steps. 1 … 100. Default: the model's."""
    prior_guidance_scale: float | None
    """How closely Stage C follows the prompt; at 1 or below guidance is off. 0 … 50. Default: the model's."""
    num_inference_steps: int | None
    """Stage B's steps. 1 … 100. Default: the model's."""
    decoder_guidance_scale: float | None
    """How closely Stage B follows the prompt; at 1 or below guidance is off. 0 … 50. Default: the model's."""


class AnyParameters(Shared, total=False):
    """What the client's methods take; they refuse by name what their model does not have, before anything is sent."""

    num_inference_steps: int | None
    """Stage B's steps. 1 … 100. Default: the model's."""
    guidance_scale: float | None
    """How closely to follow the prompt; at 1 or below guidance is off and a step costs one row, not two. 0 … 50.
    Default: the model's."""
    guidance_rescale: float | None
    """How much of the guided prediction's contrast is taken back. 0 … 1. Default: 0."""
    guidance_end: float | None
    """The share of the model calls, rounded down, that guidance is on for; a step costs one row from there on. 0 …
    1. Default: 1."""
    clip_skip: int | None
    """Last layers of the text encoders to leave out. 0 … one less than the layers of the shorter encoder. Default:
    0."""
    original_size: Sequence[int] | None
    """The size that the model is told the picture had. Height, width, 1 … 65,536. Default: the picture's size."""
    target_size: Sequence[int] | None
    """The size that the model is told the picture gets. Height, width, 1 … 65,536. Default: the picture's size."""
    crops_coords_top_left: Sequence[int] | None
    """Where the model is told the picture was cut. Top, left, 0 … 65,536. Default: 0, 0."""
    sampler: str | None
    """As euler or dpmpp_2m; `triptych samplers` lists them. The samplers that were exported. Default: the model's."""
    schedule: str | None
    """Noise schedule, as karras; each sampler has its own. The sampler's own. Default: the model's."""
    init_image: Picture | None
    """The picture to start from: PNG, JPEG or WebP. A PNG, JPEG or WebP file, at most 32 MiB and 64 megapixels.
    Default: none."""
    mask: Picture | None
    """White is painted anew, black is kept. A PNG, JPEG or WebP file, at most 32 MiB and 64 megapixels. Default:
    none."""
    strength: float | None
    """How far to go from the picture. 0 … 1. Default: 0.3; with `mask` 0.9999."""
    denoising_end: float | None
    """The share of the steps after which the base hands over to the refiner. Over 0, under 1. Default: base only."""
    aesthetic_score: float | None
    """What the refiner is told of the prompt. 0 … 10. Default: 6."""
    negative_aesthetic_score: float | None
    """What the refiner is told of the negative prompt. 0 … 10. Default: 2.5."""
    prompt_syntax: str | None
    """How prompts are read: as they are, or with A1111's weights and as many words as one likes. `plain`, `a1111`.
    Default: `plain`."""
    lora: Sequence[Mapping[str, Any]] | str | None
    """Adapters (LoRAs) of the server's folder, whose effects add up; the base wears them, a refiner does not. At
    most 8, each with a scale of -4 … 4, else 1. Default: none."""
    mask_blur: int | None
    """How softly the mask ends: the radius, in its own pixels, of the Gaussian that blurs it before all else. 0 …
    256. Default: 0."""
    padding_mask_crop: int | None
    """Paint only the part of the picture around the mask, with so many pixels more at each side, at `height` ×
    `width`, and lay it over the picture, which keeps its own size. 0 … 4096. Default: none."""
    extend: Sequence[int] | None
    """How many pixels to add at each edge of the picture, which are painted anew. Left, top, right, bottom, 0 …
    4,096. Default: none."""
    ip_adapter_image: Picture | None
    """A picture to draw like: its middle square is an image prompt beside the text. A PNG, JPEG or WebP file, at
    most 32 MiB and 64 megapixels. Default: none."""
    ip_adapter: str | None
    """The image prompt (IP-Adapter) that reads the picture. The names given to `--ip-adapter`. Default: the model's
    first."""
    ip_adapter_scale: float | None
    """How closely to follow the picture; from 1 on it says more than the text. 0 … 2. Default: 1."""
    control: Sequence[Mapping[str, Any]] | str | None
    """Controls (ControlNets) of the model, which add up: each follows a picture of `control_images`; a refiner goes
    without. At most 4, each with a scale of 0 … 4, else 1, and a start and an end of 0 … 1, else the whole way.
    Default: none."""
    control_images: Sequence[Picture] | None
    """The pictures that controls follow: edges, depth, a pose, ready as the control wants them. 1 … 4 files, each a
    PNG, JPEG or WebP file, at most 32 MiB and 64 megapixels. Default: none."""
    prior_num_inference_steps: int | None
    """Stage C's steps. 1 … 100. Default: the model's."""
    prior_guidance_scale: float | None
    """How closely Stage C follows the prompt; at 1 or below guidance is off. 0 … 50. Default: the model's."""
    decoder_guidance_scale: float | None
    """How closely Stage B follows the prompt; at 1 or below guidance is off. 0 … 50. Default: the model's."""
