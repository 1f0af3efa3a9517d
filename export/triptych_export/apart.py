"""The graph of a denoiser with adapters as processors run it: every layer's A and B are an input of their own.

A graph with slabs cuts them up at each step, and so copies all of them. It refers to the weights of the graph that it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import onnx_ir as ir

from triptych_contract.families import FAMILIES
from triptych_serving.adapters.mix import AXIS, part
from triptych_serving.manifest import sha256

from .parts import Made, fingerprint
from .sharing import share
from .stages import StageSpec
from .weights import combined

CODE = "apart sharing"
STAGES = tuple(
    adapted for family in FAMILIES.values() for stage, adapted in family.adapted.items() if stage not in family.encoders
)


def made_from(facts: Mapping[str, Any]) -> str:
    """What the graph depends on, given the stage's exported `facts`."""
    return fingerprint(CODE, facts["sha256"])


def make(output: Path, name: str, facts: Mapping[str, Any]) -> Made:
    """Write the graph of a stage in the build `output`; what is added to its `facts` in the manifest."""
    path = f"{name}/apart.onnx"
    model = ir.load(output / facts["path"])
    spec = StageSpec.of(name, facts)
    for slab, axis in AXIS.items():
        _cut(model.graph, slab, axis, [width[axis - 1] for width in facts["layers"].values()], spec.inputs[slab].shape)
    ir.save(model, output / path)
    share(output / path, output / facts["path"], output / name)
    files = [*facts["files"], path]
    return [path], {"apart": path, "files": files, "sha256": combined(sha256(output / file) for file in files)}


def _cut(graph: ir.Graph, slab: str, axis: int, widths: list[int], shape: tuple[Any, ...]) -> None:
    """Put an input in the place of each slice of a slab."""
    (whole,) = (value for value in graph.inputs if value.name == slab)
    slices = {_begin(use.node): use.node for use in whole.uses()}
    for number, begin in enumerate(accumulate(widths[:-1], initial=0)):
        node, own = slices[begin], [*shape]
        own[axis] = widths[number]
        value = ir.Value(name=part(slab, number), shape=ir.Shape(own), type=whole.type)
        graph.inputs.append(value)
        ir.convenience.replace_all_uses_with(node.outputs[0], value)
        graph.remove(node, safe=True)
    graph.inputs.remove(whole)


def _begin(node: ir.Node) -> int:
    """Where a slice begins."""
    begins = node.inputs[1]
    if node.op_type != "Slice" or begins is None or begins.const_value is None:
        raise AssertionError(f"{node.name}: {node.op_type} reads a slab; expected: a Slice")
    return int(begins.const_value.numpy()[0])
