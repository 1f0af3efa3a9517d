"""One torch module to one ONNX file, checked against PyTorch before it takes its place."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnxscript import rewriter

from .attention import in_chunks
from .errors import ExportError
from .stages import StageSpec, TensorSpec

OPSET = 20
TOLERANCE = 1e-4
# Weights of at least this many values are stored in half precision where that loses no bit, and computed in single.
HALF_FROM = 256
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Beyond this a file keeps its weights beside itself (a protobuf ends at 2 GB) and is checked without ONNX Runtime's copies.
EXTERNAL_FROM_BYTES = 1_500_000_000
INVARIANCE_BATCHES = (1, 2, 3, 4, 8)

Arrays = dict[str, NDArray[Any]]


def convert(module: torch.nn.Module, spec: StageSpec, examples: list[Arrays], path: Path) -> None:
    """Trace `module` on the first example and save it to `path` (and `path` + "_data" where large)."""
    model = _trace(module, spec, examples[0]).model
    for name, default in spec.one_for_all.items():
        _take_one_for_all(model.graph, name, default)
    save(model, path, spec)


def save(model: ir.Model, path: Path, spec: StageSpec) -> None:
    """Write a graph without notes on its origin, a VAE's attention in chunks, weights in half precision where that is exact."""
    if spec.component == "vae":
        in_chunks(model.graph)
    _strip(model)
    _halve(model.graph)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, path, external_data=f"{path.name}_data" if size > EXTERNAL_FROM_BYTES else None)


def references(module: torch.nn.Module, spec: StageSpec, examples: list[Arrays]) -> list[Arrays]:
    """What PyTorch makes of each example."""
    results = []
    with torch.inference_mode():
        for example in examples:
            outputs = module(**{name: torch.from_numpy(array) for name, array in example.items()})
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            results.append({name: out.numpy() for name, out in zip(spec.graph_outputs, outputs, strict=True)})
    return results


def check_graph(
    stage: str, path: Path, examples: list[Arrays], expected: list[Arrays], made_of: str = "PyTorch"
) -> float:
    """The largest relative difference between ONNX Runtime and what it was `made_of` over all examples and outputs.

    Raises:
        ExportError: it exceeds TOLERANCE (pixels: more than one level); names the stage, the output and the figure.
    """
    session, worst = open_session(path), 0.0
    for example, reference in zip(examples, expected, strict=True):
        outputs = session.run(list(reference), example)
        for (name, wanted), got in zip(reference.items(), outputs, strict=True):
            difference, limit = _difference(wanted, got)
            if not difference <= limit:
                raise ExportError(
                    f"{stage}: {name} differs from {made_of} by {difference:.2e}; legal: at most {limit:g}"
                )
            worst = max(worst, difference)
    return worst


def batch_invariant(path: Path, example: Arrays) -> bool:
    """Whether each row's bytes are the same in every batch and beside any neighbours."""
    session = open_session(path)
    many = {name: _eight_rows(name, array) for name, array in example.items()}
    whole = session.run(None, many)
    for batch in INVARIANCE_BATCHES:
        part = session.run(None, {name: array[8 - batch :] if array.ndim else array for name, array in many.items()})
        if any(not np.array_equal(a[8 - batch :], b) for a, b in zip(whole, part, strict=True)):
            return False
    return True


def _eight_rows(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Eight different rows of an input; a number that is for all rows stays what it is."""
    if not array.ndim:
        return array
    rows: NDArray[Any] = np.concatenate([_turned(name, array, k) for k in range(-(-8 // len(array)))])[:8]
    return rows


def _turned(name: str, array: NDArray[Any], k: int) -> NDArray[Any]:
    """Other values of the same kind; a mask that hides the first token would hide all that it sees."""
    return array if name == "attention_mask" else np.roll(array, k, axis=-1)


def open_session(path: Path) -> ort.InferenceSession:
    """A session as the server opens it; for large files without the copies that optimisation makes and an arena keeps."""
    from triptych_serving.ort import session

    if not Path(f"{path}_data").exists():
        return session(path)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def example_inputs(spec: StageSpec, sizes: Sequence[Mapping[str, int]]) -> list[Arrays]:
    """Random inputs for each of `sizes`, which give the named dimensions. The first is the one that is traced: all above 1."""
    random = np.random.default_rng(0)
    return [
        {name: _random(tensor, dimensions, name, random) for name, tensor in spec.inputs.items()}
        for dimensions in sizes
    ]


def _random(spec: TensorSpec, sizes: Mapping[str, int], name: str, random: np.random.Generator) -> NDArray[Any]:
    shape = [sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape]
    if name == "attention_mask":  # a tokenizer's: as many ones as there are tokens, one at least
        lengths = random.integers(1, shape[1] + 1, shape[0])
        return (np.arange(shape[1]) < lengths[:, None]).astype(spec.dtype)
    if spec.dtype == "int64":
        return random.integers(0, spec.limit or 2, shape)
    if name in ("lora_a", "lora_b"):  # as small as adapters are: their products add up over all channels
        return np.float32(0.05) * random.standard_normal(shape, np.float32)  # hundreds of megabytes a row
    scale = {"timestep": 999.0, "timestep_ratio": 1.0, "time_ids": 1024.0}.get(name)
    values = random.standard_normal(shape) if scale is None else random.random(shape) * scale
    return np.asarray(values, spec.dtype)


def _trace(module: torch.nn.Module, spec: StageSpec, example: Arrays) -> Any:
    dynamic = {
        name: {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}
        for name, tensor in spec.inputs.items()
    }
    with warnings.catch_warnings(), torch.inference_mode(), _quick_rules():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            module,
            kwargs={name: torch.from_numpy(array) for name, array in example.items()},
            dynamo=True,
            dynamic_shapes=dynamic,
            input_names=list(spec.inputs),
            output_names=list(spec.graph_outputs),
            opset_version=OPSET,
            verbose=False,
        )


@contextlib.contextmanager
def _quick_rules() -> Iterator[None]:
    """Rewriting without the rule that goes through the whole graph at each of its nodes, which takes Stage B half an hour.

    It would make one Split of two Slices; networks that are split in two are traced to Splits as it is.
    """
    rules = rewriter._DEFAULT_REWRITE_RULES
    rewriter._DEFAULT_REWRITE_RULES = tuple(rule for rule in rules if rule.name != "SlicesSplit")
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = rules


def _take_one_for_all(graph: ir.Graph, name: str, default: int | None) -> None:
    """Let an input have a single row, which every row of the batch then gets; `default` where it is left out."""
    given = next(value for value in graph.inputs if value.name == name)
    like, rank = next(value for value in graph.inputs if value is not given), len(given.shape or ())
    ones = ir.Value(name=f"{name}.ones", const_value=ir.tensor(np.ones(rank - 1, np.int64), name=f"{name}.ones"))
    rows = ir.node("Shape", [like], {"start": 0, "end": 1}, name=f"{name}.rows")
    shape = ir.node("Concat", [rows.outputs[0], ones], {"axis": 0}, name=f"{name}.shape")
    all_rows = ir.node("Expand", [given, shape.outputs[0]], name=f"{name}.expand")
    expanded = all_rows.outputs[0]
    expanded.name, expanded.shape, expanded.type = f"{name}.expanded", given.shape, given.type
    ir.convenience.replace_all_uses_with(given, expanded)
    all_rows.replace_input_with(0, given)
    graph.register_initializer(ones)
    graph.insert_before(graph[0], [rows, shape, all_rows])
    given.shape = ir.Shape([f"{name}_rows", *(given.shape or ())[1:]])
    if default is not None and given.dtype is not None:
        given.const_value = ir.tensor(np.full([1] * rank, default, given.dtype.numpy()), name=name)
        graph.register_initializer(given)


def _strip(model: ir.Model) -> None:
    """Drop the exporter's notes on where each node came from: they hold paths of the machine that ran it."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _halve(graph: ir.Graph) -> None:
    """Store each float32 weight in float16, or else in bfloat16, behind a Cast, wherever that is exact."""
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < HALF_FROM:
            continue
        dtype = next((dtype for dtype in HALVES if _exact_in(dtype, tensor)), None)
        if dtype is None:
            continue
        half = ir.Value(
            name=f"{name}.half",
            shape=value.shape,
            type=ir.TensorType(dtype),
            const_value=_lazy_half(tensor, f"{name}.half", dtype),
        )
        cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT}, name=f"{name}.cast")
        cast.outputs[0].name, cast.outputs[0].shape = f"{name}.single", value.shape
        cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.insert_before(graph[0], cast)
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del graph.initializers[name]
        graph.register_initializer(half)


def _lazy_half(tensor: ir.TensorProtocol, name: str, dtype: ir.DataType) -> ir.LazyTensor:
    """The tensor in a half type, converted when it is written: all of them at once would not fit beside the module."""

    def convert() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(dtype.numpy()), dtype=dtype, name=name)

    shape = ir.Shape([int(dim) for dim in tensor.numpy().shape])
    return ir.LazyTensor(convert, dtype=dtype, shape=shape, name=name)


def _exact_in(dtype: ir.DataType, tensor: ir.TensorProtocol) -> bool:
    values = tensor.numpy()
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(dtype.numpy()).astype(np.float32), values))


def _difference(wanted: NDArray[Any], got: NDArray[Any]) -> tuple[float, float]:
    """How far apart, and how far they may be: levels for pixels, relative to the largest value else."""
    if wanted.shape != got.shape:
        return float("inf"), TOLERANCE
    difference = np.abs(wanted.astype(np.float64) - got.astype(np.float64)).max()
    return (
        (float(difference), 1.0) if wanted.dtype == np.uint8 else (float(difference / np.abs(wanted).max()), TOLERANCE)
    )
