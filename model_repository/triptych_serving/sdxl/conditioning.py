"""The encoders' answers and an SDXL request's settings, as each model's conditioning: diffusers' order of rows and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych_contract.errors import invalid
from triptych_contract.sdxl.card import MAX_CHUNKS, RefinerCard, SdxlCard
from triptych_contract.sdxl.settings import SdxlSettings

from ..denoiser import Conditioning, Floats
from ..encoded import Read, read_one
from .walk import BASE, REFINER


def token_weights(read: Read, rows: int, model: SdxlCard) -> Floats:
    """What each token's hidden state is multiplied by, (rows, encoders, tokens): tokens are those of all chunks of a prompt.

    Raises:
        InvalidRequest: they are missing or misshapen.
    """
    weights, length = read_one(read, "token_weights"), model.tokenizers[0].max_length
    legal = [(rows, len(model.tokenizers), chunks * length) for chunks in range(1, MAX_CHUNKS + 1)]
    if weights.shape not in legal:
        raise invalid("token_weights", f"shape {weights.shape}", f"{legal[0]} … {legal[-1]}")
    return weights


def conditionings(settings: SdxlSettings, model: SdxlCard, read: Read, weights: Floats) -> dict[str, Conditioning]:
    """The conditioning of every model that a request goes to, by stage name; `read` gives the encoders' outputs by name.

    Those have a row for each chunk of each prompt; twice as many where the refiner's, the second half, are made without adapters.

    Raises:
        InvalidRequest: an output is missing or misshapen.
    """
    chunks = len(weights) * (weights.shape[-1] // model.tokenizers[0].max_length)
    made = {BASE: _base(settings, model, _part(read, slice(chunks)), weights)}
    if settings.denoising_end is not None and model.refiner is not None:
        made[REFINER] = _refiner(settings, model, model.refiner, _part(read, slice(-chunks, None)), weights)
    return made


def _part(read: Read, rows: slice) -> Read:
    """What the encoders made for one of the models: of twice the rows the first half is the base's."""

    def part(name: str) -> NDArray[Any] | None:
        array = read(name)
        return None if array is None else array[rows]

    return part


def _base(settings: SdxlSettings, model: SdxlCard, read: Read, weights: Floats) -> Conditioning:
    embeddings = np.concatenate(
        [_weighted(read, name, weights[:, k]) for k, name in enumerate(("hidden_states", "hidden_states_2"))], axis=-1
    )
    text_embeds = _pooled(read, "text_embeds", len(weights))
    zeroed = _zeroed(settings, model, model.force_zeros_for_empty_prompt)
    time_ids = [[*settings.original_size, *settings.crops_coords_top_left, *settings.target_size]] * len(text_embeds)
    return _conditioning(embeddings, text_embeds, time_ids, zeroed, _guidance_embedding(settings, model))


def _refiner(
    settings: SdxlSettings, model: SdxlCard, refiner: RefinerCard, read: Read, weights: Floats
) -> Conditioning:
    own, shared = ("refiner_hidden_states", "refiner_text_embeds"), ("hidden_states_2", "text_embeds")
    states, pooled = own if refiner.own_text_encoder else shared
    embeddings, text_embeds = _weighted(read, states, weights[:, 1]), _pooled(read, pooled, len(weights))
    zeroed = _zeroed(settings, model, refiner.force_zeros_for_empty_prompt)
    crop, size, target = settings.crops_coords_top_left, settings.original_size, settings.target_size
    if refiner.requires_aesthetics_score:
        # diffusers leaves the crop out of the unconditional row here, and only here.
        rows = [[*size, 0, 0, settings.negative_aesthetic_score], [*size, *crop, settings.aesthetic_score]]
    else:
        rows = [[*size, *crop, *target]] * 2
    return _conditioning(embeddings, text_embeds, rows[-len(text_embeds) :], zeroed, None)


def _weighted(read: Read, name: str, weights: Floats) -> Floats:
    """An encoder's answer, a row for each chunk, as a row for each prompt: (rows, tokens, width)."""
    states, (rows, tokens) = read_one(read, name), weights.shape
    if states.ndim != 3 or states.shape[0] * states.shape[1] != rows * tokens or len(states) % rows:
        raise invalid(name, f"shape {states.shape}", f"rows of chunks that make {rows} of {tokens} tokens")
    weighted: Floats = states.reshape(rows, tokens, -1) * weights[..., None]
    return weighted


def _pooled(read: Read, name: str, rows: int) -> Floats:
    """The pooled embedding of each prompt's first chunk, (rows, width), as A1111 takes it."""
    pooled = read_one(read, name)
    if pooled.ndim != 2 or not len(pooled) or len(pooled) % rows:
        raise invalid(name, f"shape {pooled.shape}", f"a multiple of {rows} rows")
    return np.ascontiguousarray(pooled[:: len(pooled) // rows])


def _zeroed(settings: SdxlSettings, model: SdxlCard, force_zeros: bool) -> bool:
    """Whether the unconditional row is zeros: a missing negative prompt is not an empty one."""
    return settings.guided(model) and settings.negative_prompt is None and force_zeros


def _conditioning(
    embeddings: Floats, text_embeds: Floats, time_ids: list[list[Any]], zeroed: bool, timestep_cond: Floats | None
) -> Conditioning:
    if zeroed:
        embeddings[0] = text_embeds[0] = 0
    arrays = {
        "encoder_hidden_states": embeddings,  # (rows, tokens, width)
        "text_embeds": text_embeds,  # (rows, width)
        # (rows, 6) pixels: original height, width, crop top, left, target height, width; a refiner has an aesthetic
        # score in the last two's place
        "time_ids": np.array(time_ids, np.float32),
    }
    return Conditioning(arrays if timestep_cond is None else {**arrays, "timestep_cond": timestep_cond})


def _guidance_embedding(settings: SdxlSettings, model: SdxlCard) -> Floats | None:
    """The guidance scale as a distilled model reads it: diffusers' `get_guidance_scale_embedding`, (1, width)."""
    width = model.guidance_embedding_dim
    if width is None:
        return None
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * -np.float32(np.log(10000.0) / (half - 1)))
    angles = np.float32(1000) * np.float32(settings.guidance_scale - 1) * frequencies
    embedding = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2, np.float32)])
    return np.asarray(embedding[None], np.float32)
