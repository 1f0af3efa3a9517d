"""Weights that two graphs of a build have in common are in one file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from triptych_export.sharing import share
from triptych_serving.ort import OrtStage

WIDE = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
OWN = WIDE[::-1].copy()


def write(path, weights, *, outside=False):
    """x times every one of the weights, in turn."""
    path.parent.mkdir(parents=True)
    names = [f"w{number}" for number in range(len(weights))]
    values = ["x", *(f"y{number}" for number in range(len(weights)))]
    nodes = [
        helper.make_node("MatMul", [before, name], [after])
        for before, name, after in zip(values, names, values[1:], strict=False)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 64]) for name in (values[0], values[-1])]
    stored = [numpy_helper.from_array(array, name) for name, array in zip(names, weights, strict=True)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=outside, location=f"{path.name}_data", size_threshold=0)
    return path


@pytest.mark.parametrize("outside", [False, True])
def test_a_graph_refers_to_what_another_has_and_keeps_the_rest(tmp_path, outside):
    donor = write(tmp_path / "first/model.onnx", [WIDE, OWN + 1], outside=outside)
    graph = write(tmp_path / "second/model.onnx", [OWN, WIDE], outside=outside)
    x = np.ones((2, 64), np.float32)
    before = OrtStage(graph)({"x": x})
    shared = share(graph, donor, tmp_path)
    assert shared == ["first/model.onnx_data" if outside else "first/model.onnx"]
    assert OWN.nbytes < graph.stat().st_size < 1.2 * OWN.nbytes
    assert [file.name for file in graph.parent.iterdir()] == ["model.onnx"]
    after = OrtStage(graph, weights=tmp_path)({"x": x})
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_graph_without_common_weights_is_whole(tmp_path):
    donor = write(tmp_path / "first/model.onnx", [WIDE])
    graph = write(tmp_path / "second/model.onnx", [OWN])
    assert share(graph, donor, tmp_path) == []
    assert OrtStage(graph)({"x": np.ones((1, 64), np.float32)})
