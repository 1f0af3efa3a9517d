"""8-bit floats: products with weights multiply E4M3 numbers and scales; everything else stays in float16 (`precision`).

Each weight has a scale for each of its columns, each input one for all of it: its largest magnitude, seen while pictures were
drawn (`calibration`), becomes E4M3's largest number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .errors import ExportError

LARGEST = 448.0  # E4M3's
# The weight's axis that has a scale for each index: the one that is not summed over.
KEPT_AXIS = {"MatMul": 1, "Gemm": 0}


def watch(source: Path, target: Path) -> list[str]:
    """Write the graph `source` to `target` with more outputs, and return their names: for each product the largest
    magnitude that its input has, as a scalar. An output is called like the product's node."""
    model = ir.load(source)
    names = []
    for node in list(_products(model.graph)):
        magnitude = ir.node("Abs", [node.inputs[0]])
        largest = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0})
        value = largest.outputs[0]
        value.name, value.shape, value.type = str(node.name), ir.Shape([]), ir.TensorType(ir.DataType.FLOAT)
        model.graph.insert_before(node, [magnitude, largest])
        model.graph.outputs.append(value)
        names.append(value.name)
    ir.save(model, target, external_data=f"{target.name}_data")
    return names


def quantize(graph: ir.Graph, largest: Mapping[str, float]) -> None:
    """Rewrite a float16 graph in place; `largest` has the largest magnitude of each product's input, by node name.

    Raises:
        ExportError: a product was not calibrated.
    """
    for node in list(_products(graph)):
        if not largest.get(str(node.name)):
            raise ExportError(f"{node.name}: no calibration; its input was never seen, or was zero")
        _quantize(graph, node, largest[str(node.name)])
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]


def _products(graph: ir.Graph) -> Iterator[ir.Node]:
    """Products with a stored weight of two dimensions, which a Cast may widen first."""
    for node in graph:
        if node.op_type in KEPT_AXIS and _weight(node) is not None:
            yield node


def _weight(node: ir.Node) -> ir.Value | None:
    value = node.inputs[1]
    producer = value.producer() if value is not None else None
    stored = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else value
    return (
        stored if stored is not None and stored.is_initializer() and stored.shape and len(stored.shape) == 2 else None
    )


def _quantize(graph: ir.Graph, node: ir.Node, largest: float) -> None:
    weight, given = _weight(node), node.inputs[0]
    if weight is None or weight.const_value is None or given is None:
        raise ExportError(f"{node.name}: {node.op_type} has no weight")
    axis, name = KEPT_AXIS[node.op_type], str(node.name)
    numbers, scales = _eighths(weight.const_value.numpy().astype(np.float32), axis)
    stored, columns = _initializer(graph, f"{name}.weight", numbers), _initializer(graph, f"{name}.columns", scales)
    scale = _initializer(graph, f"{name}.scale", np.array(largest / LARGEST, np.float16))
    zero = _initializer(graph, f"{name}.zero", np.array(0, ml_dtypes.float8_e4m3fn))
    product = ir.node("DequantizeLinear", [stored, columns], {"axis": axis})
    narrow = ir.node("QuantizeLinear", [given, scale, zero])
    wide = ir.node("DequantizeLinear", [narrow.outputs[0], scale])
    for made, kind, shape, dtype in (
        (product, "wide_weight", stored.shape, ir.DataType.FLOAT16),
        (narrow, "narrow_input", given.shape, ir.DataType.FLOAT8E4M3FN),
        (wide, "wide_input", given.shape, ir.DataType.FLOAT16),
    ):
        value = made.outputs[0]
        made.name = value.name = f"{name}.{kind}"
        value.shape, value.type = shape, ir.TensorType(dtype)
    graph.insert_before(node, [product, narrow, wide])
    node.replace_input_with(0, wide.outputs[0])
    node.replace_input_with(1, product.outputs[0])


def _eighths(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[ml_dtypes.float8_e4m3fn], NDArray[np.float16]]:
    """A weight as E4M3, and the float16 scales along `axis` that make it the weight again."""
    smallest = np.finfo(np.float16).smallest_subnormal
    scales = np.maximum(np.abs(weight).max(axis=1 - axis) / LARGEST, smallest).astype(np.float16)
    numbers = weight / np.expand_dims(scales.astype(np.float32), 1 - axis)
    return numbers.clip(-LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn), scales


def _initializer(graph: ir.Graph, name: str, content: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(content, name=name)
    made = ir.Value(name=name, shape=ir.Shape(content.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(made)
    return made
