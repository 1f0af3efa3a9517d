"""A denoiser that is one small graph, on the processor and on a simulated GPU: for tests of what the loop does around it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from triptych_export.precision import lower
from triptych_export.stages import StageSpec
from triptych_export.step import append
from triptych_serving import step
from triptych_serving.engines import Profile
from triptych_serving.ort import OrtDenoiser
from triptych_serving.tensorrt.denoiser import TensorRTDenoiser

from .. import simulated

MOST_ROWS = 16
SIZES = {"height": 8, "width": 8}
LATENTS = ["batch", 4, "height", "width"]
INPUTS = {
    "sample": {"dtype": "float32", "shape": LATENTS},
    "timestep": {"dtype": "float32", "shape": ["batch"]},
    "text_embeds": {"dtype": "float32", "shape": ["batch", 1]},
}
OUTPUTS = {"out_sample": {"dtype": "float32", "shape": LATENTS}}


def inputs_of(*, one_timestep):
    """The model's inputs; some take one timestep for all rows."""
    return {**INPUTS, "timestep": {"dtype": "float32", "shape": [] if one_timestep else ["batch"]}}


def write(path, opset, inputs) -> None:
    """tanh(0.6 · sample + timestep / 2000 + text_embeds)."""
    nodes = [
        helper.make_node("Mul", ["sample", "scale"], ["scaled"]),
        helper.make_node("Mul", ["timestep", "rate"], ["late"]),
        helper.make_node("Reshape", ["late", "column_shape"], ["column"]),
        helper.make_node("Add", ["column", "text_embeds"], ["shift"]),
        helper.make_node("Unsqueeze", ["shift", "sides"], ["shifts"]),
        helper.make_node("Add", ["scaled", "shifts"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["out_sample"]),
    ]
    constants = {
        "scale": np.float32(0.6),
        "rate": np.float32(1 / 2000),
        "column_shape": np.int64([-1, 1]),
        "sides": np.int64([2, 3]),
    }
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, spec["shape"]) for name, spec in inputs.items()],
        [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, LATENTS)],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)


class Small:
    """`host` and `made` predict the same; `made` takes whole steps, on `device`."""

    def __init__(self, folder, device=None, *, opset=20, one_timestep=False, **options) -> None:
        self.model = inputs_of(one_timestep=one_timestep)
        plain, stepped = folder / "small.onnx", folder / "stepped.onnx"
        write(plain, opset, self.model)
        spec = StageSpec.of("unet", {"component": "unet", "inputs": self.model, "outputs": OUTPUTS})
        lower(plain, stepped, "fp32", spec, finish=lambda model: append(model, self.model))
        inputs = step.inputs(self.model)
        self.profiles = [_profile(inputs, "own", (8, 8, 8)), _profile(inputs, "any", (4, 8, 16))]
        shapes = [{"name": one.name, "shapes": one.shapes} for one in self.profiles]
        facts = {"inputs": inputs, "outputs": step.outputs(self.model, OUTPUTS), "profiles": shapes}
        self.plan = folder / "small.plan"
        self.plan.write_bytes(simulated.plan(stepped, facts, SIZES))
        self.host, self.device = OrtDenoiser(plain), device or simulated.SimulatedDevice()
        self.made = self.denoiser(**options)

    def denoiser(self, **options) -> TensorRTDenoiser:
        """Another one on the same device."""
        engine = self.device.load(self.plan, [0])
        return TensorRTDenoiser(
            self.device, engine, self.profiles, self.model, SIZES, **{"most_rows": MOST_ROWS, **options}
        )


def _profile(inputs, name, sides) -> Profile:
    ranges = {"batch": (1, 2, MOST_ROWS), "height": sides, "width": sides}
    return Profile(
        name,
        {
            tensor: tuple(
                tuple(ranges[dim][k] if isinstance(dim, str) else dim for dim in spec["shape"]) for k in range(3)
            )
            for tensor, spec in inputs.items()
        },
    )
