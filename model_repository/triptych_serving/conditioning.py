"""The encoders' answers and a request's settings, as each model's conditioning: diffusers' order of rows and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .denoiser import Conditioning, Floats
from .errors import InvalidRequest
from .manifest import Manifest, ModelCard, RefinerCard
from .settings import Settings
from .walk import BASE, REFINER

Read = Callable[[str], NDArray[Any] | None]


def conditionings(settings: Settings, manifest: Manifest, read: Read) -> dict[str, Conditioning]:
    """The conditioning of every model that a request goes to, by stage name; `read` gives the encoders' outputs by name.

    Raises:
        InvalidRequest: an output is missing, or has another shape than the model takes: it would fail the whole batch.
    """
    made = {BASE: _base(settings, manifest.model, read)}
    if settings.denoising_end is not None and manifest.model.refiner is not None:
        made[REFINER] = _refiner(settings, manifest.model, manifest.model.refiner, read)
    rows = 1 + settings.guided(manifest.model)
    return {stage: _checked(conditioning, manifest.stages[stage], rows) for stage, conditioning in made.items()}


def _base(settings: Settings, model: ModelCard, read: Read) -> Conditioning:
    hidden_states, hidden_states_2, text_embeds = _read(read, "hidden_states", "hidden_states_2", "text_embeds")
    embeddings = np.concatenate([hidden_states, hidden_states_2], axis=-1)
    zeroed = _zeroed(settings, model, model.force_zeros_for_empty_prompt)
    time_ids = [[*settings.original_size, *settings.crops_coords_top_left, *settings.target_size]] * len(text_embeds)
    return _conditioning(embeddings, text_embeds, time_ids, zeroed, _guidance_embedding(settings, model))


def _refiner(settings: Settings, model: ModelCard, refiner: RefinerCard, read: Read) -> Conditioning:
    own, shared = ("refiner_hidden_states", "refiner_text_embeds"), ("hidden_states_2", "text_embeds")
    embeddings, text_embeds = _read(read, *(own if refiner.own_text_encoder else shared))
    zeroed = _zeroed(settings, model, refiner.force_zeros_for_empty_prompt)
    crop, size, target = settings.crops_coords_top_left, settings.original_size, settings.target_size
    if refiner.requires_aesthetics_score:
        # diffusers leaves the crop out of the unconditional row here, and only here.
        rows = [[*size, 0, 0, settings.negative_aesthetic_score], [*size, *crop, settings.aesthetic_score]]
    else:
        rows = [[*size, *crop, *target]] * 2
    return _conditioning(embeddings, text_embeds, rows[-len(text_embeds) :], zeroed, None)


def _read(read: Read, *names: str) -> list[Floats]:
    arrays = [read(name) for name in names]
    for name, array in zip(names, arrays, strict=True):
        if array is None:
            raise InvalidRequest(name, "nothing", "all that the ensemble passes on")
    return [np.array(array) for array in arrays]


def _zeroed(settings: Settings, model: ModelCard, force_zeros: bool) -> bool:
    """Whether the unconditional row is zeros: a missing negative prompt is not an empty one."""
    return settings.guided(model) and settings.negative_prompt is None and force_zeros


def _conditioning(
    embeddings: Floats, text_embeds: Floats, time_ids: list[list[Any]], zeroed: bool, timestep_cond: Floats | None
) -> Conditioning:
    if zeroed:
        embeddings[0] = text_embeds[0] = 0
    return Conditioning(embeddings, text_embeds, np.array(time_ids, np.float32), timestep_cond)


def _guidance_embedding(settings: Settings, model: ModelCard) -> Floats | None:
    """The guidance scale as a distilled model reads it: diffusers' `get_guidance_scale_embedding`, (1, width)."""
    width = model.guidance_embedding_dim
    if width is None:
        return None
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * -np.float32(np.log(10000.0) / (half - 1)))
    angles = np.float32(1000) * np.float32(settings.guidance_scale - 1) * frequencies
    embedding = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2, np.float32)])
    return np.asarray(embedding[None], np.float32)


def _checked(conditioning: Conditioning, stage: Any, rows: int) -> Conditioning:
    for name, spec in stage["inputs"].items():
        if name in ("sample", "timestep"):
            continue
        shape, legal = getattr(conditioning, name).shape, (rows, *spec["shape"][1:])
        if shape != legal:
            raise InvalidRequest(name, f"shape {shape}", f"{legal}")
    return conditioning
