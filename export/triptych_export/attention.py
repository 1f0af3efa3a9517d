"""Attention written into a graph in another way: in chunks of queries, or as one operation of ONNX Runtime's.

A VAE's attention is one head over all places of a picture. At 1024² it has 16,384 of them, and its scores, in three copies, take
3.2 GB in float32: no kernel of TensorRT's fuses a head of 512. Each query's row of scores is by itself, so chunks change nothing.

TensorRT finds the attention of UNets by itself. ONNX Runtime's CUDA provider does not; its MultiHeadAttention runs as flash or
memory-efficient attention there, which never write the scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx_ir as ir

# At 1024² a chunk's scores are 1024 × 16,384: 64 MiB in float32.
CHUNKS = 16
HEADS_INNER = (0, 2, 1, 3)  # heads before or after the length


def in_chunks(graph: ir.Graph) -> int:
    """Rewrite every `softmax(query · key) · value` to run over CHUNKS parts of the queries; how many there were."""
    found = [_Chunked(graph, name, *nodes) for name, nodes in _attentions(graph)]
    for attention in found:
        attention.write()
    return len(found)


def fused(model: ir.Model) -> int:
    """Rewrite every `softmax(query · key) · value` over heads as one MultiHeadAttention; how many there were."""
    found = [_Fused(model.graph, name, *nodes) for name, nodes in _attentions(model.graph)]
    heads = [attention for attention in found if attention.heads]
    for attention in heads:
        attention.write()
    if heads:
        model.opset_imports["com.microsoft"] = 1
    return len(heads)


def _attentions(graph: ir.Graph) -> Iterator[tuple[str, tuple[ir.Node, ir.Node, ir.Node]]]:
    """Each attention by a name for it: the product of queries and keys, the Softmax, the product with the values."""
    found = [(scores, node, mixed) for node in graph if (scores := _scores(node)) and (mixed := _mixed(node))]
    return ((f"attention_{number}", nodes) for number, nodes in enumerate(found))


def _scores(softmax: ir.Node) -> ir.Node | None:
    """The product whose rows a Softmax over the last axis takes, if nobody else reads it."""
    if softmax.op_type != "Softmax" or softmax.attributes.get_int("axis", -1) != -1 or softmax.inputs[0] is None:
        return None
    made = softmax.inputs[0].producer()
    if made is None or made.op_type != "MatMul" or len(made.outputs[0].uses()) != 1:
        return None
    query = made.inputs[0]
    return made if query is not None and query.shape is not None else None


def _mixed(softmax: ir.Node) -> ir.Node | None:
    """The product of a Softmax with the values, if nobody else reads it."""
    uses = list(softmax.outputs[0].uses())
    node = uses[0].node if len(uses) == 1 and uses[0].idx == 0 else None
    return node if node is not None and node.op_type == "MatMul" else None


class _Rewritten(ABC):
    """The nodes in the place of one attention; queries are (…, length, width), keys turned already, (…, width, length)."""

    def __init__(self, graph: ir.Graph, name: str, scores: ir.Node, softmax: ir.Node, mixed: ir.Node) -> None:
        self._graph, self._name, self._nodes = graph, name, list[ir.Node]()
        self._scores, self._softmax, self._mixed = scores, softmax, mixed
        self._rank = len(scores.inputs[0].shape)  # type: ignore[union-attr, arg-type]  # `_scores` looked

    def write(self) -> None:
        query, key, value = (cast(ir.Value, given) for given in (*self._scores.inputs, self._mixed.inputs[1]))
        result = self._mixed.outputs[0]
        attended = self._attended(query, key, value)
        attended.shape = result.shape
        self._graph.insert_before(self._mixed, self._nodes)
        ir.convenience.replace_all_uses_with(result, attended, replace_graph_outputs=True)
        self._graph.remove([self._mixed, self._softmax, self._scores], safe=True)

    @abstractmethod
    def _attended(self, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
        """Add the nodes; their result."""

    def _numbers_of(
        self, name: str, kind: str, inputs: Sequence[ir.Value], attributes: dict[str, int] | None = None
    ) -> ir.Value:
        return self._node(name, kind, inputs, ir.DataType.INT64, attributes)

    def _node(
        self,
        name: str,
        kind: str,
        inputs: Sequence[ir.Value],
        dtype: ir.DataType | None,
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> ir.Value:
        node = ir.node(kind, inputs, attributes, name=f"{self._name}.{name}", domain=domain)
        made = node.outputs[0]
        made.name, made.type = f"{self._name}.{name}", ir.TensorType(dtype or ir.DataType.FLOAT)
        self._nodes.append(node)
        return made

    def _constant(self, name: str, number: Any) -> ir.Value:
        name = f"{self._name}.{name}"
        value = ir.Value(name=name, const_value=ir.tensor(np.array(number, np.int64), name=name))
        self._graph.register_initializer(value)
        return value


class _Chunked(_Rewritten):
    """Over CHUNKS parts of the queries, one after another."""

    def _attended(self, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
        length = self._numbers_of("length", "Shape", [query], {"start": -2, "end": -1})
        chunks = self._split(query, length)
        mixed = [self._attend(number, chunk, key, value) for number, chunk in enumerate(chunks)]
        whole = self._node("whole", "Concat", mixed, query.dtype, {"axis": -2})
        ends = [self._constant("start", [0]), length, self._constant("axis", [-2])]
        return self._node("attended", "Slice", [whole, *ends], query.dtype)

    def _split(self, query: ir.Value, length: ir.Value) -> Sequence[ir.Value]:
        """The queries, (…, length, width), in chunks of one size: TensorRT bounds memory by what it knows of shapes.

        Zeros fill up the last one.
        """
        less = self._numbers_of("less", "Neg", [length])
        missing = self._numbers_of("missing", "Mod", [less, self._constant("chunks", [CHUNKS])])
        pads = [self._constant("before", [0] * (2 * self._rank - 2)), missing, self._constant("after", [0])]
        filled = self._node(
            "filled", "Pad", [query, self._numbers_of("pads", "Concat", pads, {"axis": 0})], query.dtype
        )
        width = self._numbers_of("width", "Shape", [query], {"start": -1})
        shape = self._numbers_of(
            "shape", "Concat", [self._constant("outer", [0] * (self._rank - 2) + [CHUNKS, -1]), width], {"axis": 0}
        )
        split = self._node("split", "Reshape", [filled, shape], query.dtype)
        return [
            self._node(
                f"query_{number}",
                "Gather",
                [split, self._constant(f"number_{number}", number)],
                query.dtype,
                {"axis": self._rank - 2},
            )
            for number in range(CHUNKS)
        ]

    def _attend(self, number: int, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
        scores = self._node(f"scores_{number}", "MatMul", [query, key], query.dtype)
        shares = self._node(f"shares_{number}", "Softmax", [scores], query.dtype, {"axis": -1})
        return self._node(f"mixed_{number}", "MatMul", [shares, value], query.dtype)


class _Fused(_Rewritten):
    """As MultiHeadAttention, whose tensors are (rows, length, heads · width). ONNX Runtime cancels turns that meet."""

    @property
    def heads(self) -> int | None:
        """How many there are, where queries are (rows, heads, length, width) and it is one number."""
        shape = self._scores.inputs[0].shape  # type: ignore[union-attr]  # `_scores` looked
        return shape[1] if len(shape) == 4 and isinstance(shape[1], int) else None  # type: ignore[arg-type, index]

    def _attended(self, query: ir.Value, key: ir.Value, value: ir.Value) -> ir.Value:
        turns = {"query": (query, HEADS_INNER), "key": (key, (0, 3, 1, 2)), "value": (value, HEADS_INNER)}
        inputs = [self._merged(name, given, turn) for name, (given, turn) in turns.items()]
        attributes = {"num_heads": self.heads, "scale": 1.0}  # queries and keys are scaled already
        merged = self._node("merged", "MultiHeadAttention", inputs, query.dtype, attributes, "com.microsoft")
        shape = self._constant("heads", [0, 0, self.heads, -1])
        split = self._node("split", "Reshape", [merged, shape], query.dtype)
        return self._node("attended", "Transpose", [split], query.dtype, {"perm": HEADS_INNER})

    def _merged(self, name: str, given: ir.Value, turn: Sequence[int]) -> ir.Value:
        turned = self._node(f"{name}_turned", "Transpose", [given], given.dtype, {"perm": turn})
        return self._node(name, "Reshape", [turned, self._constant(f"{name}_shape", [0, 0, -1])], given.dtype)
