"""Optimum: its ONNX export of SDXL as weights, and the files with which its pipelines read ours."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from triptych_serving.manifest import FILE_NAME

from . import to_onnx
from .errors import ExportError
from .parts import StageRecipe
from .stages import StageSpec, TensorSpec
from .to_onnx import Arrays
from .weights import Kind, Weights, read_index

GRAPH = "model.onnx"
MARK = f"unet/{GRAPH}"


class OptimumFolder(Weights):
    """A folder that `optimum-cli export onnx` made, checked. Its VAE lies in two folders."""

    def folders(self, part: str) -> tuple[Path, ...]:
        parts = ("vae_decoder", "vae_encoder") if part == "vae" else (part,)
        return tuple(self.folder / one for one in parts)

    def files(self, component: str) -> list[Path]:
        """Graphs, and the files beside them with their weights.

        Raises:
            ExportError: a graph is missing.
        """
        folders = self.folders(component)
        for folder in folders:
            if not (folder / GRAPH).is_file():
                raise ExportError(f"{folder.name}: no {GRAPH} in {folder}; Optimum's export has one for each part")
        return [file for folder in folders for file in [folder / GRAPH, *_weights(folder)]]

    def check(self, component: str) -> None:
        """Every graph's weights must be its own folder's.

        Raises:
            ExportError: some lie elsewhere; names the file.
        """
        for file in self.files(component):
            if not file.resolve().is_relative_to(file.parent.resolve()):
                raise ExportError(f"{file}: leads outside {file.parent}; supported: files of the folder itself")


def open_folder(folder: Path, kind: Kind) -> Weights:
    """A folder in diffusers layout, with weights or with Optimum's graphs.

    Raises:
        ExportError: it is not of this kind, something is missing, or it is a build of ours.
    """
    if (folder / FILE_NAME).is_file():
        raise ExportError(f"{folder}: is a build; supported: the folder that it was exported from")
    read_index(folder)
    return (OptimumFolder if (folder / MARK).is_file() else Weights).open(folder, kind)


@dataclass(frozen=True)
class AdaptedStageRecipe(StageRecipe):
    """A graph of Optimum's whose edges are made ours: names, layers to skip, and uint8 pixels."""

    name: str = ""

    @classmethod
    def of(
        cls, name: str, folder: OptimumFolder, spec: StageSpec, sizes: Sequence[Mapping[str, int]]
    ) -> AdaptedStageRecipe:
        """The stage `name`; a UNet takes one timestep a batch."""
        inputs = {**spec.inputs, "timestep": TensorSpec("float32", ())} if spec.component == "unet" else spec.inputs
        adapted = dataclasses.replace(spec, inputs=inputs, all_outputs=(), one_for_all={})
        return cls(folder, adapted, _no_module, sizes, "optimum", made_of="Optimum's graph", name=name)

    def write(self, path: Path, examples: list[Arrays]) -> list[Arrays]:
        part = self.name if self.spec.component == "vae" else self.spec.component
        source = self.weights.folder / part / GRAPH
        edge, model = _edge(self, f"{part}/{GRAPH}"), ir.load(source)
        _check_weights(model, source)
        edge.adapt(model.graph)
        _finish(model, edge)
        to_onnx.save(model, path, self.spec)
        del model
        graph = _Graph(source)
        read = [{name: value for name, value in edge.given(one).items() if name in graph.inputs} for one in examples]
        return [edge.expected(graph(given), one) for given, one in zip(read, examples, strict=True)]


def _no_module(_component: Any) -> Any:
    raise NotImplementedError("Optimum's graphs hold no torch modules")


class _Graph:
    """Optimum's graph as it is, arrays in and all of its outputs out by name."""

    def __init__(self, path: Path) -> None:
        self._session = to_onnx.open_session(path)
        self.inputs, self.outputs = (
            [tensor.name for tensor in tensors] for tensors in (self._session.get_inputs(), self._session.get_outputs())
        )

    def __call__(self, inputs: Arrays) -> Arrays:
        return dict(zip(self.outputs, self._session.run(self.outputs, inputs), strict=True))


class _Edge:
    """What is changed about a graph: nothing, but for names and types. `expected` says the same in NumPy."""

    def __init__(self, spec: StageSpec, where: str) -> None:
        self.spec, self.where = spec, where

    def adapt(self, graph: ir.Graph) -> None:
        """Rewrite the graph in place."""

    def given(self, example: Arrays) -> Arrays:
        """An example as the graph took it before."""
        return example

    def expected(self, outputs: Arrays, example: Arrays) -> Arrays:  # noqa: ARG002 - the edges' common signature
        """What the adapted graph should make of an example, from what the graph itself made of it."""
        return {name: outputs[name] for name in self.spec.outputs}


class _TextEdge(_Edge):
    """The hidden states before each layer → for each row the one that `clip_skip` leaves last."""

    def __init__(self, spec: StageSpec, where: str, layers: int) -> None:
        super().__init__(spec, where)
        self.states = [f"hidden_states.{layer}" for layer in range(layers)]

    def adapt(self, graph: ir.Graph) -> None:
        outputs = {value.name: value for value in graph.outputs}
        _require(self.states, outputs, f"{self.where}: outputs")
        clip_skip = ir.Input("clip_skip", ir.Shape(["batch", 1]), ir.TensorType(ir.DataType.INT64))
        graph.inputs.append(clip_skip)
        one, last = (_constant(graph, name, [k]) for name, k in (("axis", 1), ("last", len(self.states) - 1)))
        each = [_add(graph, "Unsqueeze", [outputs[name], one]) for name in self.states]
        stacked = _add(graph, "Concat", each, axis=1)
        row = _add(graph, "GatherND", [stacked, _add(graph, "Sub", [last, clip_skip])], batch_dims=1)
        row.name = "hidden_states"
        graph.outputs.append(row)

    def expected(self, outputs: Arrays, example: Arrays) -> Arrays:
        states = np.stack([outputs[name] for name in self.states])
        rows = np.arange(states.shape[1])
        skipped = states[len(states) - 1 - example["clip_skip"][:, 0], rows]
        return {name: skipped if name == "hidden_states" else outputs[name] for name in self.spec.outputs}


class _DecoderEdge(_Edge):
    """Scaled latents → diffusers' way to uint8 pixels, around the decoder."""

    def __init__(self, spec: StageSpec, where: str, config: Mapping[str, Any]) -> None:
        super().__init__(spec, where)
        normalised = config.get("latents_mean") and config.get("latents_std")
        mean, std = (config["latents_mean"], config["latents_std"]) if normalised else ([0.0], [1.0])
        self.mean, self.std = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (mean, std))
        self.std /= np.float32(config["scaling_factor"])

    def adapt(self, graph: ir.Graph) -> None:
        given = next(value for value in graph.inputs if value.name == "latent_sample")
        first, users = graph[0], list(given.uses())
        latents = _add(graph, "Mul", [given, _constant(graph, "latent_std", self.std)], before=first)
        latents = _add(graph, "Add", [latents, _constant(graph, "latent_mean", self.mean)], before=first)
        for user, index in users:
            user.replace_input_with(index, latents)
        decoded = next(value for value in graph.outputs if value.name == "sample")
        half, zero, one, most = (
            _constant(graph, f"pixels_{k}", np.float32(value)) for k, value in enumerate((0.5, 0, 1, 255))
        )
        image = _add(graph, "Add", [_add(graph, "Mul", [decoded, half]), half])
        image = _add(graph, "Transpose", [_add(graph, "Clip", [image, zero, one])], perm=[0, 2, 3, 1])
        image = _add(graph, "Round", [_add(graph, "Mul", [image, most])])
        pixels = _add(graph, "Cast", [image], to=int(ir.DataType.UINT8))
        decoded.name, pixels.name = "decoded", "sample"
        graph.outputs[list(graph.outputs).index(decoded)] = pixels

    def given(self, example: Arrays) -> Arrays:
        return {"latent_sample": example["latent_sample"] * self.std + self.mean}

    def expected(self, outputs: Arrays, example: Arrays) -> Arrays:  # noqa: ARG002 - the edges' common signature
        image = np.clip(outputs["sample"] * np.float32(0.5) + np.float32(0.5), 0, 1).transpose(0, 2, 3, 1)
        return {"sample": (image * 255).round().astype(np.uint8)}


def _edge(stage: AdaptedStageRecipe, where: str) -> _Edge:
    config = stage.weights.config(stage.spec.component)
    if stage.spec.component.startswith("text_encoder"):
        return _TextEdge(stage.spec, where, config["num_hidden_layers"])
    return _DecoderEdge(stage.spec, where, config) if stage.name == "vae_decoder" else _Edge(stage.spec, where)


def _finish(model: ir.Model, edge: _Edge) -> None:
    """Leave the spec's inputs and outputs, with its shapes, and know the type of every value in between.

    Raises:
        ExportError: the graph has others, or of other types; names them.
    """
    graph, spec, where = model.graph, edge.spec, edge.where
    inputs, outputs = ({str(value.name): value for value in values} for values in (graph.inputs, graph.outputs))
    if inputs.keys() != spec.inputs.keys():
        raise ExportError(f"{where}: inputs {', '.join(inputs)}; supported: {', '.join(spec.inputs)}")
    _require(spec.outputs, outputs, f"{where}: outputs")
    graph.outputs[:] = [outputs[name] for name in spec.outputs]
    for tensors, values in ((spec.inputs, inputs), (spec.outputs, outputs)):
        for name, tensor in tensors.items():
            _give_shape(values[name], tensor, f"{where}: {name}")
    RemoveUnusedNodesPass()(model)
    ShapeInferencePass(strict_mode=False)(model)


def _give_shape(value: ir.Value, tensor: TensorSpec, where: str) -> None:
    dtype = value.dtype.numpy().name if value.dtype is not None else tensor.dtype
    if dtype != tensor.dtype:
        raise ExportError(f"{where} is {dtype}; supported: {tensor.dtype}, as Optimum exports without --dtype")
    if value.shape is not None and len(value.shape) != len(tensor.shape):
        raise ExportError(f"{where} has {len(value.shape)} dimensions; supported: {len(tensor.shape)}")
    value.shape = ir.Shape(tensor.shape)


def _require(names: Sequence[str] | Mapping[str, Any], there: Mapping[Any, Any], what: str) -> None:
    if missing := [name for name in names if name not in there]:
        raise ExportError(f"{what} {', '.join(map(str, there))}; {', '.join(missing)} missing")


def _check_weights(model: ir.Model, source: Path) -> None:
    """Weights outside a graph may only lie beside it."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).resolve().parent != source.parent.resolve():
            raise ExportError(
                f"{source.parent.name}/{source.name}: reads {tensor.location}; supported: files beside it"
            )


def _constant(graph: ir.Graph, name: str, content: NDArray[Any] | np.float32 | list[int]) -> ir.Value:
    name = f"triptych.{name}"
    tensor = ir.tensor(np.asarray(content), name=name)
    value = ir.Value(
        name=name,
        shape=ir.Shape([int(size) for size in np.shape(content)]),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def _add(
    graph: ir.Graph, op: str, inputs: list[ir.Value], before: ir.Node | None = None, **attributes: Any
) -> ir.Value:
    node = ir.node(op, inputs, attributes)
    graph.insert_before(before, node) if before is not None else graph.append(node)
    return node.outputs[0]


def _weights(folder: Path) -> list[Path]:
    """Files beside a graph that may hold its weights."""
    return sorted(file for file in folder.iterdir() if file.name != GRAPH and file.suffix not in (".json", ".txt"))


def layout(weights: Weights) -> dict[str, bytes]:
    """The files by path with which `ORTStableDiffusionXLPipeline` reads a build: configs, and what belongs to tokenizers.

    The VAE's say that latents need no scaling: the graphs do it.
    """
    files = {"model_index.json": (weights.folder / "model_index.json").read_bytes()}
    for part in ("text_encoder", "text_encoder_2", "unet"):
        files[f"{part}/config.json"] = _json(weights.document(part))
    files["scheduler/scheduler_config.json"] = _json(weights.document("scheduler"))
    vae = {**weights.document("vae"), "scaling_factor": 1.0, "latents_mean": None, "latents_std": None}
    files |= dict.fromkeys(("vae_decoder/config.json", "vae_encoder/config.json"), _json(vae))
    for part in weights.kind.tokenizers:
        own = sorted((weights.folder / part).iterdir())
        files |= {f"{part}/{file.name}": file.read_bytes() for file in own if file.name != "tokenizer.json"}
    return files


def _json(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
