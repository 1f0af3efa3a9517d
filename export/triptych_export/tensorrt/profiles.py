"""Optimisation profiles: which batches and sizes an engine is tuned for. Several narrow ones beat one wide one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triptych_contract.cards import ModelCard
from triptych_serving.engines import Profile, Shape

from ..errors import ExportError

# Smallest, tuned for, largest.
Range = tuple[int, int, int]
Dimensions = dict[str, Range]

# Rows of a denoiser's batch at the model's own size. A mixed batch runs in the narrowest profile that holds it.
DENOISER_BATCHES: tuple[Range, ...] = ((1, 2, 2), (3, 4, 4), (5, 8, 8), (9, 16, 16))
# … and at any other legal size.
ANY_SIZE_BATCHES: tuple[Range, ...] = ((1, 2, 8),)
# Decoders and image encoders: one 1024² picture keeps a GPU busy, four take four times the memory.
DECODER_BATCHES: tuple[Range, ...] = ((1, 1, 1),)
# Text encoders have no sizes.
TEXT_BATCHES: tuple[Range, ...] = ((1, 2, 16),)


def make_profiles(card: ModelCard, stage: str, inputs: Mapping[str, Mapping[str, Any]]) -> tuple[Profile, ...]:
    """The profiles of a stage, the one for the model's own size and small batches first; `inputs` are its engine's.

    Raises:
        ExportError: the graph has a dimension that no size of the model gives; names it.
    """
    spec = {name: tensor["shape"] for name, tensor in inputs.items()}
    named = {dim for shape in spec.values() for dim in shape if isinstance(dim, str)}
    if named == {"batch"}:
        return tuple(_profile(spec, "any", {"batch": batch}) for batch in TEXT_BATCHES)
    own, every = _own_size(card), _every_size(card)
    denoises = stage in card.denoisers
    made = [
        _profile(spec, f"own-size-{b[2]}", {**own, "batch": b})
        for b in (DENOISER_BATCHES if denoises else DECODER_BATCHES)
    ]
    if own != every:
        batches = ANY_SIZE_BATCHES if denoises else DECODER_BATCHES
        made += [_profile(spec, f"any-size-{b[2]}", {**every, "batch": b}) for b in batches]
    return tuple(made)


def _own_size(card: ModelCard) -> Dimensions:
    return {name: (size,) * 3 for name, size in card.default_sizes.items()}


def _every_size(card: ModelCard) -> Dimensions:
    smallest, largest = card.smallest_sizes, card.largest_sizes
    return {name: (smallest[name], size, largest[name]) for name, size in card.default_sizes.items()}


def _profile(spec: Mapping[str, Sequence[int | str]], name: str, ranges: Dimensions) -> Profile:
    return Profile(name, {tensor: _shapes(tensor, shape, ranges) for tensor, shape in spec.items()})


def _shapes(tensor: str, shape: Sequence[int | str], ranges: Dimensions) -> tuple[Shape, Shape, Shape]:
    unknown = [dim for dim in shape if isinstance(dim, str) and dim not in ranges]
    if unknown:
        raise ExportError(f"{tensor}: dimension {unknown[0]!r}; known: {', '.join(ranges)}")
    smallest, tuned_for, largest = (
        tuple(ranges[dim][k] if isinstance(dim, str) else dim for dim in shape) for k in range(3)
    )
    return smallest, tuned_for, largest
