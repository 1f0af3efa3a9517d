"""What a stage is: the component it comes from and the tensors of its graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """dtype (numpy's name) and shape; a string is a dimension that varies: batch, latent_height, latent_width, …

    int64 values lie below `limit`.
    """

    dtype: str
    shape: tuple[int | str, ...]
    limit: int | None = None


@dataclass(frozen=True)
class StageSpec:
    """A stage: which component it comes from, and its tensors by their names in the graph."""

    component: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
