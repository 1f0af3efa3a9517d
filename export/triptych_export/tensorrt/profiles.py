"""Optimisation profiles: which batches and sizes an engine is tuned for. Several narrow ones beat one wide one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from triptych_contract.cards import ModelCard
from triptych_serving.adapters.mix import GPU_ROWS
from triptych_serving.adapters.mix import INPUTS as SLABS
from triptych_serving.denoiser import PROMPT
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
    worn = SLABS[0] in inputs
    if named == {"batch"}:
        return tuple(_profile(spec, "any", {"batch": batch}) for batch in _bounded(TEXT_BATCHES, worn))
    own, every = _own_size(card), _every_size(card)
    of_own: Sequence[Range] = DECODER_BATCHES
    of_any: Sequence[Range] = DECODER_BATCHES
    if worn or PROMPT[0] in inputs or stage in card.denoisers:
        of_own, of_any = _bounded(DENOISER_BATCHES, worn), _bounded(ANY_SIZE_BATCHES, worn)
    made = [_profile(spec, f"own-size-{b[2]}", {**own, "batch": b}) for b in of_own]
    if own != every:
        made += [_profile(spec, f"any-size-{b[2]}", {**every, "batch": b}) for b in of_any]
    return tuple(made)


def _bounded(batches: Sequence[Range], worn: bool) -> Sequence[Range]:
    """No more rows with adapters than a call on a GPU has."""
    return (
        [(low, min(best, GPU_ROWS), min(most, GPU_ROWS)) for low, best, most in batches if low <= GPU_ROWS]
        if worn
        else batches
    )


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
