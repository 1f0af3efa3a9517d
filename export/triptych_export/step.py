"""Append the sampler's step to a denoiser's graph, as `triptych_serving.step` describes it.

The order of operations is that of `triptych_serving.tables`, so that where each operation is rounded by itself, as on ONNX
Runtime's CPU provider, the numbers are the same. Coefficients that tables leave out are 0 here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir

from triptych_serving import step

from .errors import ExportError

OPSET = 13  # the first whose Squeeze, Split and Unsqueeze are those below
AXES_OPSET = 18  # the first whose ReduceMean is told its axes by an input


def append(model: ir.Model, inputs: Mapping[str, Mapping[str, Any]]) -> None:
    """Append the step to a graph that takes float32 `sample` and makes float32 `out_sample`; `inputs` are the manifest's.

    Raises:
        ExportError: the graph is of an older opset than OPSET.
    """
    graph, opset = model.graph, model.opset_imports[""]
    if opset < OPSET:
        raise ExportError(f"opset {opset} given; supported with engines: {OPSET} or newer")
    given = {name: _input(name, spec) for name, spec in step.inputs(inputs).items() if name not in inputs}
    graph.inputs.extend(given.values())
    made = _Nodes(graph, opset)
    numbers = made.split(made("Unsqueeze", given["numbers"], made.axes(2, 3)), 1, step.NUMBERS)  # each (slots, 1, 1, 1)
    latents, noise_preds = (
        [made("Squeeze", one, made.axes(1)) for one in made.split(given[name], 1, count)]
        for name, count in (("latents", step.LATENTS), ("noise_preds", step.NOISE_PREDS))
    )
    sample = next(value for value in graph.inputs if value.name == "sample")
    seen = made("Mul", *(made("Gather", one, given["slot_of_row"]) for one in (latents[0], numbers[step.INPUT_SCALE])))
    sample.replace_all_uses_with(seen)
    graph.inputs.remove(sample)

    out = next(value for value in graph.outputs if value.name == "out_sample")
    rows = made.split(made("Gather", out, given["rows_of_slot"]), 1, 2)
    unconditional, conditional = (made("Squeeze", one, made.axes(1)) for one in rows)
    noise_pred = _guided(made, unconditional, conditional, numbers)
    noise_preds = [noise_pred, *noise_preds[:-1]]
    begin = step.COEFFICIENTS
    stepped = made(
        "Add",
        made.weighted_sum(numbers[begin:], latents),
        made.weighted_sum(numbers[begin + step.LATENTS :], noise_preds),
    )
    stepped = made("Add", stepped, made("Mul", numbers[step.NOISE], given["noise"]))
    blended = made("Add", given["kept"], made("Mul", given["mask"], stepped))
    stepped = made("Where", made.positive(numbers[step.MASKED]), blended, stepped)
    for name, newest in (("latents", [stepped, *latents[:-1]]), ("noise_preds", noise_preds)):
        joined = made("Concat", *(made("Unsqueeze", one, made.axes(1)) for one in newest), axis=1)
        joined.name, joined.type, joined.shape = f"next_{name}", given[name].type, given[name].shape
        graph.outputs.append(joined)
    graph.sort()


def _guided(made: _Nodes, unconditional: ir.Value, conditional: ir.Value, numbers: list[ir.Value]) -> ir.Value:
    """As `tables.guided`. Of a request without guidance both rows are the same one."""
    apart = made("Sub", conditional, unconditional)
    combined = made("Add", unconditional, made("Mul", numbers[step.GUIDANCE], apart))
    ratio = made("Sqrt", made("Div", made.variance(conditional), made.variance(combined)))
    rescale = numbers[step.RESCALE]
    whole = made("Mul", rescale, made("Mul", combined, ratio))
    rescaled = made("Add", whole, made("Mul", made("Sub", made.constant(np.float32(1)), rescale), combined))
    return made("Where", made.positive(rescale), rescaled, combined)


def _input(name: str, spec: Mapping[str, Any]) -> ir.Value:
    dtype = ir.DataType.from_numpy(np.dtype(spec["dtype"]))
    return ir.Value(name=name, shape=ir.Shape(spec["shape"]), type=ir.TensorType(dtype))


class _Nodes:
    """Makes nodes of a graph, each with one output unless it says otherwise."""

    def __init__(self, graph: ir.Graph, opset: int) -> None:
        self._graph, self._opset, self._count = graph, opset, 0

    def __call__(self, op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self._node(op, inputs, attributes, 1)[0]

    def split(self, value: ir.Value, axis: int, parts: int) -> list[ir.Value]:
        return self._node("Split", [value, self.constant(np.ones(parts, np.int64))], {"axis": axis}, parts)

    def constant(self, array: Any) -> ir.Value:
        return self("Constant", value=ir.tensor(np.asarray(array)))

    def axes(self, *axes: int) -> ir.Value:
        return self.constant(np.array(axes, np.int64))

    def positive(self, value: ir.Value) -> ir.Value:
        return self("Greater", value, self.constant(np.float32(0)))

    def variance(self, value: ir.Value) -> ir.Value:
        """Of each slot's numbers."""
        apart = self("Sub", value, self._mean(value))
        return self._mean(self("Mul", apart, apart))

    def _mean(self, value: ir.Value) -> ir.Value:
        axes = (1, 2, 3)
        if self._opset < AXES_OPSET:
            return self("ReduceMean", value, axes=axes)
        return self("ReduceMean", value, self.axes(*axes))

    def weighted_sum(self, coefficients: list[ir.Value], history: list[ir.Value]) -> ir.Value:
        terms = [self("Mul", scale, one) for scale, one in zip(coefficients, history, strict=False)]
        return reduce(lambda total, term: self("Add", total, term), terms)

    def _node(self, op: str, inputs: Sequence[ir.Value], attributes: Mapping[str, Any], outputs: int) -> list[ir.Value]:
        self._count += 1
        node = ir.node(op, inputs, dict(attributes), num_outputs=outputs, name=f"step.{self._count}")
        for k, value in enumerate(node.outputs):
            value.name = f"step.{self._count}.{k}"
        self._graph.append(node)
        return list(node.outputs)
