"""Whether a VAE keeps its pictures in float16: SDXL's own overflows there, others that were trained for it do not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from triptych_serving.manifest import Manifest

from . import precision
from .errors import ExportError
from .parts import Made, fingerprint
from .stages import StageSpec
from .to_onnx import open_session

STAGES = ("vae_decoder", "vae_encoder")
CODE = "half precision"
# The largest inner number that is not too near to float16's largest, 65504: other pictures have others than those tried.
MOST = 16384.0
# The largest differences from float32: of pixels in levels, of anything else relative to its largest value.
LEVELS, SHARE = 2, 0.01
LARGEST = "largest"  # the output that is added
PLAIN, SMOOTH = 1.0, 2.0  # of random latents; real ones have about the variance of the first


def made_from(sha256: str) -> str:
    """What the answer depends on."""
    return fingerprint(CODE, sha256)


def make(manifest: Manifest, name: str) -> Made:
    """Try the stage `name` of an export whose graphs are there; what the manifest says of it."""
    return [], {"fits_half": fits(manifest, name)}


def fits(manifest: Manifest, name: str) -> bool:
    """Whether a VAE's stage has only numbers that float16 holds, and makes the same of them, at its smallest size."""
    spec, source = StageSpec.of(name, manifest.stages[name]), manifest.stage_path(name)
    ((tensor, given),) = spec.inputs.items()
    sizes = {**manifest.model.smallest_sizes, "batch": 1}
    shape = [sizes[dim] if isinstance(dim, str) else dim for dim in given.shape]
    with tempfile.TemporaryDirectory(dir=manifest.build) as scratch:
        watched, lowered = Path(scratch) / "watched.onnx", Path(scratch) / "half.onnx"
        _watch(source, watched)
        try:
            precision.lower(source, lowered, "fp16", spec)
        except ExportError:  # a weight does not fit
            return False
        exact, half, outputs = open_session(watched), open_session(lowered), [*spec.outputs]  # a graph may have more
        return all(
            _kept(exact.run([*outputs, LARGEST], {tensor: one}), half.run(outputs, {tensor: one}))
            for one in _examples(shape, pixels="encoder" in name)
        )


def _watch(source: Path, target: Path) -> None:
    """Write the graph with one output more: the largest magnitude of all float32 numbers in it."""
    model = ir.load(source)
    graph, largest = model.graph, []
    for node in list(graph):
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT and node.op_type != "Constant":
                magnitude = ir.node("Abs", [value])
                found = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0})
                graph.extend([magnitude, found])
                largest.append(found.outputs[0])
    whole = ir.node("Max", largest)
    whole.outputs[0].name, whole.outputs[0].type = LARGEST, ir.TensorType(ir.DataType.FLOAT)
    whole.outputs[0].shape = ir.Shape([])
    graph.append(whole)
    graph.outputs.append(whole.outputs[0])
    ir.save(model, target, external_data=f"{target.name}_data")


def _examples(shape: list[int], *, pixels: bool) -> Iterator[NDArray[np.float32]]:
    """Inputs of several kinds: noise, large soft shapes, flat surfaces."""
    random = np.random.default_rng(0)
    *_, height, width = shape
    rows, columns = np.linspace(0, 2 * np.pi, height)[:, None], np.linspace(0, 2 * np.pi, width)
    phases = random.uniform(0, 2 * np.pi, shape[:2])[:, :, None, None]
    for one in (
        PLAIN * random.standard_normal(shape),
        SMOOTH * np.sin(rows + phases) * np.cos(2 * columns + phases),
        np.full(shape, SMOOTH),
        np.full(shape, -SMOOTH),
    ):
        yield np.asarray(np.clip(one, -1, 1) if pixels else one, np.float32)


def _kept(exact: list[NDArray[Any]], half: list[NDArray[Any]]) -> bool:
    *wanted, largest = exact
    if not largest <= MOST:  # also where it is no number
        return False
    return all(_near(a, b) for a, b in zip(wanted, half, strict=True))


def _near(wanted: NDArray[Any], got: NDArray[Any]) -> bool:
    apart = np.abs(wanted.astype(np.float64) - got.astype(np.float64)).max()
    limit = LEVELS if wanted.dtype == np.uint8 else SHARE * np.abs(wanted.astype(np.float64)).max()
    return bool(apart <= limit)
