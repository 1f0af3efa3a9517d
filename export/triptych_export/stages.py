"""What a stage is: the component it comes from and the tensors of its graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
    """A stage: which component it comes from, and its tensors by their names in the graph.

    The last two are for Optimum's pipelines, which run the same graph; the server and its engines do without.
    """

    component: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    all_outputs: tuple[str, ...] = ()  # every output of the graph in order, where it has more
    # Inputs that may have one row for all; left out they mean this number, where it is one.
    one_for_all: Mapping[str, int | None] = field(default_factory=dict)
    # Of a stage with adapters: the layers that they change, (in, out) channels by name, in the order of its slabs.
    layers: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, facts: Mapping[str, Any]) -> StageSpec:
        """The tensors of an exported stage, as the manifest's `facts` have them."""
        tensors = {
            kind: {one: TensorSpec(**{**given, "shape": tuple(given["shape"])}) for one, given in facts[kind].items()}
            for kind in ("inputs", "outputs")
        }
        return cls(name, tensors["inputs"], tensors["outputs"])

    @property
    def graph_outputs(self) -> tuple[str, ...]:
        return self.all_outputs or tuple(self.outputs)
