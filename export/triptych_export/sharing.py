"""Graphs over the same weights: the second refers to them in the first one's file, so that a build has them once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir

# Smaller tensors are constants as often as weights.
FROM_BYTES = 1024


class _Place(NamedTuple):
    path: Path
    offset: int


def share(graph: Path, donor: Path, folder: Path) -> list[str]:
    """Have a graph in the build `folder` refer to the weights that `donor`, another one there, has as well.

    What remains is written into the graph's own file. Locations are relative to `folder`; the server gives it to ONNX Runtime
    as the place of external weights.

    Returns:
        The files that it refers to, relative to `folder`.
    """
    places = {_content(tensor): place for tensor, place in _weights(donor)}
    model, used = ir.load(graph), set()
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < FROM_BYTES:
            continue
        if place := places.get(_content(tensor)):
            location = place.path.relative_to(folder).as_posix()
            used.add(location)
            value.const_value = ir.ExternalTensor(
                location,
                place.offset,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.numpy().shape),
                name=name,
                base_dir=folder,
            )
        else:
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    own = Path(f"{graph}_data")
    own.unlink(missing_ok=True)
    ir.save(model, graph)
    return sorted(used)


def _weights(donor: Path) -> Iterator[tuple[ir.TensorProtocol, _Place]]:
    """The larger weights of a graph, and where their bytes are."""
    inside = donor.read_bytes()
    for value in ir.load(donor).graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < FROM_BYTES:
            continue
        if isinstance(tensor, ir.ExternalTensor):
            yield tensor, _Place(donor.parent / tensor.location, tensor.offset or 0)
        elif (offset := inside.find(tensor.tobytes())) >= 0:
            yield tensor, _Place(donor, offset)


def _content(tensor: ir.TensorProtocol) -> tuple[str, str, str]:
    return str(tensor.dtype), str(tensor.shape), hashlib.sha256(tensor.tobytes()).hexdigest()
