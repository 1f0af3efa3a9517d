"""The demo's weights out of its ONNX files, in diffusers layout: `python -m triptych_export.peers.rebuild BUILD FOLDER`.

The exporter keeps the names of most parameters; linear layers without a bias (turned), group norms (one axis more) and position
embeddings lose theirs. Those are told apart by their order: a graph uses its constants in the order in which PyTorch's modules
are called. Whoever takes the result for the same model has to draw a picture with both (`triptych_lab.bench.peers.weights`).
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Arrays = Mapping[str, NDArray[Any]]  # by name, in the order of their first use

# The architecture: what of a model's settings is in no graph.
ARCHITECTURE = Path(__file__).with_name("demo_sdxl.json")
# What the exporter puts behind the name of a constant that is kept in half precision.
HALF = ".half"
# The pipelines are untyped.
_diffusers: Any = diffusers
_transformers: Any = transformers


def rebuild(build: Path, folder: Path) -> list[str]:
    """Write the pipeline of a demo SDXL's build to `folder`.

    Returns:
        Parameters that the build does not hold, as no picture depends on them. They keep the values of a new model.

    Raises:
        ValueError: a graph is not one of this architecture.
    """
    torch.manual_seed(0)
    settings = json.loads(ARCHITECTURE.read_text("utf-8"))
    encoder = _transformers.CLIPTextModel(_transformers.CLIPTextConfig(**settings["text_encoder"]))
    encoder_2 = _transformers.CLIPTextModelWithProjection(_transformers.CLIPTextConfig(**settings["text_encoder_2"]))
    unet = _diffusers.UNet2DConditionModel(**settings["unet"])
    vae = _diffusers.AutoencoderKL(**settings["vae"], **_scale(build))
    parts: tuple[tuple[str, nn.Module, Callable[[], object]], ...] = (
        ("text_encoder", encoder, lambda: encoder(_ids())),
        ("text_encoder_2", encoder_2, lambda: encoder_2(_ids())),
        ("unet", unet, lambda: _step(unet)),
        ("vae_decoder", vae, lambda: vae.decode(torch.zeros(1, 4, 8, 8))),
        ("vae_encoder", vae, lambda: vae.encode(torch.zeros(1, 3, 64, 64))),
    )
    missing = [
        f"{name}.{parameter}"
        for name, module, call in parts
        for parameter in fill(module, call, constants(build / name / "model.onnx"))
    ]
    _diffusers.StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=encoder,
        text_encoder_2=encoder_2,
        tokenizer=_tokenizer(build / "tokenizer"),
        tokenizer_2=_tokenizer(build / "tokenizer_2"),
        unet=unet,
        scheduler=_diffusers.EulerDiscreteScheduler(**settings["scheduler"]),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    ).save_pretrained(folder)
    _prefix(folder / "text_encoder/model.safetensors")
    return missing


def constants(path: Path) -> Arrays:
    """A graph's stored tensors, float32, in the order in which its nodes first use them."""
    graph = onnx.load(path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    widened = {
        node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast" and node.input[0] in stored
    }
    used = [
        widened.get(name, name)
        for node in graph.node
        if node.output[0] not in widened
        for name in node.input
        if name in stored or name in widened
    ]
    arrays = {name: onnx.numpy_helper.to_array(stored[name]) for name in dict.fromkeys(used)}
    return {name: array.astype(np.float32) for name, array in arrays.items() if array.dtype.kind == "f"}


def fill(module: nn.Module, call: Callable[[], object], arrays: Arrays) -> list[str]:
    """Give the parameters that `call` uses their values out of a graph of the module; returns those it does not have.

    Raises:
        ValueError: a tensor with a parameter's name has another shape.
    """
    named = {name.removesuffix(HALF).partition(".")[2]: array for name, array in arrays.items() if "." in name}
    named.pop("", None)
    nameless: dict[tuple[int, ...], deque[NDArray[Any]]] = defaultdict(deque)
    for name, array in arrays.items():
        if "." not in name.removesuffix(HALF):
            nameless[_without_ones(array.shape)].append(array)
    missing = []
    for name, layer, parameter in _called(module, call):
        if name in named:
            _set(parameter, named[name], name)
            continue
        turned = isinstance(layer, nn.Linear) and parameter.ndim > 1
        candidates = nameless[_without_ones(tuple(parameter.T.shape if turned else parameter.shape))]
        if candidates:
            array = candidates.popleft()
            _set(parameter, array.T if turned else array.reshape(parameter.shape), name)
        else:
            missing.append(name)
    return missing


def _called(module: nn.Module, call: Callable[[], object]) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """The parameters of the layers in the order in which `call` calls them: name, layer, parameter."""
    calls: list[tuple[str, nn.Module]] = []
    handles = [
        layer.register_forward_pre_hook(lambda layer, _inputs, name=name: calls.append((name, layer)))
        for name, layer in module.named_modules()
        if next(layer.parameters(recurse=False), None) is not None
    ]
    with torch.no_grad():
        call()
    for handle in handles:
        handle.remove()
    for layer_name, layer in dict(calls).items():
        for name, parameter in layer.named_parameters(recurse=False):
            yield f"{layer_name}.{name}", layer, parameter


def _set(parameter: Tensor, array: NDArray[Any], name: str) -> None:
    if tuple(parameter.shape) != array.shape:
        raise ValueError(f"{name}: {array.shape} in the graph, {tuple(parameter.shape)} in the architecture")
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(array.copy()))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)


def _ids() -> Tensor:
    return torch.ones(1, 24, dtype=torch.int64)


def _prefix(path: Path) -> None:
    """Name parameters as every `CLIPTextModel` on the hub has them: transformers 4, which Optimum needs, knows no others."""
    tensors = load_file(path)
    save_file({f"text_model.{name}": tensor for name, tensor in tensors.items()}, path, {"format": "pt"})


def _step(unet: Any) -> None:
    added = {"text_embeds": torch.zeros(1, 160), "time_ids": torch.zeros(1, 6)}
    unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 24, 256), added_cond_kwargs=added)


def _scale(build: Path) -> dict[str, float]:
    card = json.loads((build / "manifest.json").read_text("utf-8"))["model"]
    return {"scaling_factor": card["latent_scale"]["factor"]}


def _tokenizer(folder: Path) -> Any:
    begin, end = "<|startoftext|>", "<|endoftext|>"
    special = {"bos_token": begin, "eos_token": end, "pad_token": end, "unk_token": end}
    file = str(folder / "tokenizer.json")
    return _transformers.PreTrainedTokenizerFast(tokenizer_file=file, model_max_length=24, **special)


if __name__ == "__main__":
    for parameter in rebuild(Path(sys.argv[1]), Path(sys.argv[2])):
        sys.stderr.write(f"not in the build: {parameter}\n")
