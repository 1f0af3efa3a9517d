"""A graph that computes in float32 rewritten to compute in half precision: GPUs' runtimes take types as a graph states them.

Inputs and outputs stay float32, but for adapters', which are float16 where the graph computes in that. So do operations that
lose their meaning in half precision, and all that is worked out from timesteps and sizes up to the first product with weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from triptych_contract.families import FAMILIES
from triptych_serving.adapters.mix import INPUTS as SLABS

from . import fp8
from .errors import ExportError
from .stages import StageSpec

SINGLE, EIGHTH = "fp32", "fp8"
HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16, EIGHTH: ir.DataType.FLOAT16}
PRECISIONS = (SINGLE, *HALVES)
# What can be calibrated, and gains by it.
EIGHTH_STAGES = ("unet", "refiner_unet")
# All others compute in float16. SDXL's own VAE overflows there (others do not: `half`), and so does Stage C; Stage B is
# published in bfloat16.
DEFAULTS = {"vae_decoder": SINGLE, "vae_encoder": SINGLE, "vqgan": SINGLE, "prior": "bf16", "decoder": "bf16"}
# A second graph of a model: rows of both are in one batch, and a request without an adapter is to look no different by more.
SECOND = {
    second: stage
    for family in FAMILIES.values()
    for stage, second in [*family.adapted.items(), *family.prompted.items()]
    if stage in (*family.stages, *family.encoders)
}
# Numbers in the hundreds whose last digits matter: a sine is taken of them.
EXACT_INPUTS = ("timestep", "timestep_ratio", "time_ids", "text_embeds")
# Where such a number ends: its products with weights are values like any other.
ENDS_EXACT = ("Conv", "Gemm", "MatMul")
# Sums of squares over a whole picture, and functions that magnify the last digit.
ALWAYS_SINGLE = ("Cos", "Exp", "Pow", "ReduceL2", "ReduceMean", "ReduceSum", "Round", "Sin")
# TensorRT has the first and the last in float16 but not in bfloat16; so has ONNX Runtime's CUDA provider the others.
SINGLE_IN_BF16 = ("ConvTranspose", "DepthToSpace", "Pad", "Resize")
BF16_OPSET = 22  # The first whose convolutions take bfloat16; nothing else about our operations changed.
# Inputs that are float32 whatever the operation computes in: Resize's region and scales.
FIXED_INPUTS = {"Resize": (1, 2)}


def lower(
    source: Path,
    target: Path,
    precision: str,
    spec: StageSpec,
    largest: Mapping[str, float] | None = None,
    rewrite: Callable[[ir.Model], object] = lambda _model: None,
    finish: Callable[[ir.Model], object] = lambda _model: None,
) -> None:
    """Write `source`, an ONNX file that computes in float32, to `target` computing in `precision`: fp32, fp16, bf16 or fp8,
    which needs the `largest` magnitude of each product's input (`calibration.largest_inputs`).

    The inputs' dimensions get `spec`'s names, so that TensorRT knows which of them are one. Inputs become required and outputs
    that `spec` does not have are dropped: these are for Optimum's pipelines. `rewrite` is applied before, `finish` after.

    Raises:
        ExportError: a weight does not fit the precision, or the graph has branches.
    """
    model = ir.load(source)
    for value in model.graph.inputs:
        value.shape = ir.Shape(spec.inputs[str(value.name)].shape)
        value.const_value = None
        model.graph.initializers.pop(str(value.name), None)
    for value in [value for value in model.graph.outputs if value.name not in spec.outputs]:
        model.graph.outputs.remove(value)
    RemoveUnusedNodesPass()(model)
    rewrite(model)
    if precision != SINGLE:
        _Lowering(model.graph, HALVES[precision]).run()
        model.opset_imports[""] = max(model.opset_imports[""], BF16_OPSET if precision == "bf16" else 0)
    if precision == EIGHTH:
        fp8.quantize(model.graph, largest or {})
    finish(model)
    ir.save(model, target, external_data=f"{target.name}_data")


@dataclass
class _Lowering:
    graph: ir.Graph
    half: ir.DataType
    exact: set[ir.Value] = field(default_factory=set)  # worked out from EXACT_INPUTS
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)

    def run(self) -> None:
        nodes = list(self.graph)
        self.exact |= {value for value in self.graph.inputs if value.name in EXACT_INPUTS}
        for value in self.graph.inputs:
            if value.name in SLABS and self.half == HALVES["fp16"]:  # hundreds of megabytes a row in float32
                value.dtype = self.half
        for node in nodes:
            if _branches(node):
                raise ExportError(f"{node.name}: {node.op_type} has branches; supported: graphs without")
            if _stores(node):
                continue
            if self._single(node):
                self._widen_inputs(node)
            else:
                self._halve(node)
        self._widen_outputs()
        _drop_unused(self.graph)

    def _single(self, node: ir.Node) -> bool:
        """Whether a node stays in float32; what it makes of exact numbers is exact too."""
        kept = node.op_type in ALWAYS_SINGLE
        kept |= self.half == HALVES["bf16"] and node.op_type in SINGLE_IN_BF16
        if node.op_type not in ENDS_EXACT and any(value in self.exact for value in node.inputs):
            self.exact |= set(node.outputs)
            kept = True
        return kept

    def _halve(self, node: ir.Node) -> None:
        for index, value in _floats(node):
            if index not in FIXED_INPUTS.get(node.op_type, ()):
                node.replace_input_with(index, self._as(value, self.half, node))
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(self.half))
        if node.op_type == "ConstantOfShape" and "value" not in node.attributes:  # float32 zeros, says ONNX
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor([0.0], ir.DataType.FLOAT))
        if node.op_type in ("Constant", "ConstantOfShape") and "value" in node.attributes:
            tensor = node.attributes["value"].as_tensor()
            if tensor.dtype == ir.DataType.FLOAT:
                node.attributes["value"] = ir.AttrTensor("value", _converted(tensor, self.half, str(node.name)))
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.dtype = self.half

    def _widen_inputs(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == self.half and value.producer() is not None:
                node.replace_input_with(index, self._as(value, ir.DataType.FLOAT, node))

    def _widen_outputs(self) -> None:
        for index, value in enumerate(self.graph.outputs):
            if value.dtype == self.half:
                name, value.name = value.name, f"{value.name}.half"
                widened = self._cast(value, ir.DataType.FLOAT, self.graph.append)
                widened.name = name
                self.graph.outputs[index] = widened

    def _as(self, value: ir.Value, dtype: ir.DataType, user: ir.Node) -> ir.Value:
        """`value` in `dtype`; a weight is converted where it lies, anything else by one Cast for all who use it."""
        if value.dtype == dtype:
            return value
        if (value, dtype) not in self.casts:
            stored = _stored(value)
            if stored is not None and dtype == self.half:
                self.casts[value, dtype] = stored if stored.dtype == dtype else self._weight(stored, stored.const_value)
            else:
                self.casts[value, dtype] = self._cast(value, dtype, lambda node: self.graph.insert_before(user, node))
        return self.casts[value, dtype]

    def _cast(self, value: ir.Value, dtype: ir.DataType, insert: Callable[[ir.Node], None]) -> ir.Value:
        node = ir.node("Cast", [value], {"to": dtype}, name=f"{value.name}.to_{dtype.name.lower()}")
        made = node.outputs[0]
        made.name, made.shape, made.type = f"{value.name}.{dtype.name.lower()}", value.shape, ir.TensorType(dtype)
        insert(node)
        return made

    def _weight(self, stored: ir.Value, content: Any) -> ir.Value:
        """A weight, stored in another type, as one of the half type."""
        name = f"{stored.name}.{self.half.name.lower()}"
        tensor = _lazily(content, self.half, name)
        made = ir.Value(name=name, shape=stored.shape, type=ir.TensorType(self.half), const_value=tensor)
        self.graph.register_initializer(made)
        return made


def _branches(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _floats(node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype == ir.DataType.FLOAT:
            yield index, value


def _stores(node: ir.Node) -> bool:
    """Whether a node only widens a weight that is stored in half precision."""
    return node.op_type == "Cast" and node.inputs[0] is not None and node.inputs[0].is_initializer()


def _stored(value: ir.Value) -> ir.Value | None:
    """The weight behind a value, if it is one: itself, or what a Cast widens."""
    if value.is_initializer():
        return value
    producer = value.producer()
    return producer.inputs[0] if producer is not None and _stores(producer) else None


def _lazily(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str) -> ir.LazyTensor:
    """Converted when it is written: all weights at once would not fit into memory."""
    return ir.LazyTensor(
        lambda: _converted(tensor, dtype, name),
        dtype=dtype,
        shape=ir.Shape([int(size) for size in tensor.numpy().shape]),
        name=name,
    )


def _converted(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str) -> ir.TensorProtocol:
    """A tensor in a half type.

    Raises:
        ExportError: one of its numbers is too large; infinities and a mask's lowest number are not numbers here.
    """
    values = tensor.numpy().astype(np.float32)
    lowest = np.finfo(np.float32).min
    with np.errstate(over="ignore"):
        made = np.where(values == lowest, -np.inf, values).astype(dtype.numpy())
    if np.isinf(made[np.isfinite(values) & (values != lowest)].astype(np.float32)).any():
        raise ExportError(
            f"{name}: {np.abs(values).max():g} does not fit {dtype.name}; give the stage another precision"
        )
    return ir.Tensor(np.asarray(made), dtype=dtype, name=name)


def _drop_unused(graph: ir.Graph) -> None:
    """Weights, and the Casts that widened them, that nothing reads any more."""
    for node in [node for node in graph if _stores(node) and not node.outputs[0].uses()]:
        graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]


def check_precision(stage: str, chosen: str) -> None:
    """Refuse a precision that there is not, or not for this stage.

    Raises:
        ExportError: names stage, choice and what is legal.
    """
    legal = PRECISIONS if stage in EIGHTH_STAGES else tuple(one for one in PRECISIONS if one != EIGHTH)
    if chosen not in legal:
        raise ExportError(f"precision of {stage}: {chosen!r} given; legal: {', '.join(legal)}")


def of_stage(name: str, chosen: Mapping[str, str], facts: Mapping[str, Any]) -> str:
    """The precision of a stage: the caller's choice, else the fastest that keeps its pictures, by what `facts` say of it.

    The second graph of a model has that of the first, if it has none of its own; what 8 bits are not for stays in its own.
    """
    asked = chosen.get(name) or chosen.get(SECOND.get(name, ""))
    if asked and (asked != EIGHTH or name in EIGHTH_STAGES):
        return asked
    return "fp16" if facts.get("fits_half") else DEFAULTS.get(name, "fp16")
