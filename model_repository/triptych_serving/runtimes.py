"""What runs a build's stages on this machine, by its target: ONNX Runtime with or without CUDA, TensorRT or TensorRT-RTX."""

from __future__ import annotations

import functools
import threading
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from triptych_contract.families import FAMILIES
from triptych_contract.sdxl.card import CONTROL, CONTROLLED, SdxlCard, control_stage, picture_stage

from .adapters.graphs import AdaptedDenoiser, AdaptedStage, AdaptedSteps, no_adapters
from .adapters.mix import GPU_ROWS
from .adapters.shelf import Shelf
from .denoiser import Denoiser
from .manifest import Manifest
from .ort import OrtDenoiser, OrtStage, Provider
from .tensorrt.library import CUDA_TARGET, GPU_TARGETS, load

# What only GPUs need is imported where it is used: these imports are a share of every model's start.
if TYPE_CHECKING:
    from .engines import Machine, Profile
    from .tensorrt.device import Device
    from .tensorrt.homes import Homes


CONTROLLED_MODEL = "unet"
# Models load beside each other, and a device is for one thread at a time.
GPU_WORK = threading.Lock()


class Stage(Protocol):
    """One stage, arrays in and arrays out by name."""

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]: ...


def denoiser(manifest: Manifest, name: str, *, most_rows: int, fixed_rows: int | None = None) -> Denoiser:
    """A model of the loop. On GPUs `fixed_rows` are the rows of every call; on processors bytes do not depend on them.

    Raises:
        ManifestError: a file is missing or harmed, or the engine does not fit this machine.
        DeviceError, LibraryMissing: the GPU, or what runs engines on it, is not as it should be.
    """
    model = _of_two_graphs(manifest, name, most_rows, fixed_rows)
    card = manifest.model
    if name != CONTROLLED_MODEL or not isinstance(card, SdxlCard) or not card.controls:
        return model
    from .control import Control, ControlledDenoiser

    controls = {
        control_stage(one): Control(
            OrtStage(manifest.stage_path(picture_stage(one))),
            OrtDenoiser(manifest.stage_path(control_stage(one)), CONTROL),
        )
        for one in card.controls
    }
    shared = manifest.stages[CONTROLLED].get("shares")
    shares = (manifest.build, manifest.stage_path(shared)) if shared else None
    return ControlledDenoiser(model, OrtDenoiser(manifest.stage_path(CONTROLLED), shares=shares), controls)


def _of_two_graphs(manifest: Manifest, name: str, most_rows: int, fixed_rows: int | None) -> Denoiser:
    plain, adapted = _denoiser(manifest, name, most_rows, fixed_rows), second(manifest, name)
    if adapted is None:
        return plain
    if manifest.target in GPU_TARGETS and "layers" in manifest.stages[adapted]:
        most_rows, fixed_rows = min(most_rows, GPU_ROWS), fixed_rows and min(fixed_rows, GPU_ROWS)
    from .steps import Steps

    worn = _denoiser(manifest, adapted, most_rows, fixed_rows)
    if isinstance(plain, Steps) and isinstance(worn, Steps):
        return AdaptedSteps(plain, worn)
    return AdaptedDenoiser(plain, worn)


def _denoiser(manifest: Manifest, name: str, most_rows: int, fixed_rows: int | None) -> Denoiser:
    inputs, sizes = manifest.stages[name]["inputs"], manifest.model.default_sizes
    if manifest.target not in GPU_TARGETS:
        path, apart = manifest.stage_path(name), manifest.stages[name].get("apart")
        return OrtDenoiser(manifest.verified(apart), shares=(None, path)) if apart else OrtDenoiser(path)
    if manifest.target == CUDA_TARGET:
        from .cuda import CudaDenoiser

        path = manifest.stage_path(name)
        return CudaDenoiser(path, inputs, sizes, most_rows=most_rows, fixed_rows=fixed_rows, provider=provider())
    from .engines import engine_path, profiles
    from .tensorrt.denoiser import TensorRTDenoiser

    path, made = engine_path(manifest, name, machine(manifest.target)), profiles(manifest, name)
    with GPU_WORK:
        gpu = device(manifest.target)
        engine = gpu.load(path, _resident(made))
        return TensorRTDenoiser(
            gpu,
            engine,
            made,
            inputs,
            sizes,
            most_rows=most_rows,
            fixed_rows=fixed_rows,
            homes=_homes(cast(Hashable, gpu)),
        )


def stage(manifest: Manifest, name: str, *, reproducible: bool = False) -> Stage:
    """An encoder or decoder, warm: on GPUs at the model's own size, on processors, which need minutes for some, at its smallest.

    Raises as `denoiser`.
    """
    made, model = _stage(manifest, name, reproducible), manifest.model
    sizes = model.default_sizes if manifest.target in GPU_TARGETS else model.smallest_sizes
    shapes = {
        tensor: ([sizes.get(dim, dim) for dim in spec["shape"]], spec["dtype"])
        for tensor, spec in manifest.stages[name]["inputs"].items()
    }
    made({tensor: np.zeros(shape, dtype) for tensor, (shape, dtype) in shapes.items()})
    adapted = _adapted(manifest, name)
    if adapted is None:
        return made
    shelf = Shelf.of_server(manifest)
    if shelf is None:
        return AdaptedStage(made, made, no_adapters)
    return AdaptedStage(made, _stage(manifest, adapted, reproducible), functools.partial(shelf.mix, stage=name))


def _adapted(manifest: Manifest, name: str) -> str | None:
    """The stage that runs in the place of another where adapters are worn, if the build has it."""
    adapted = FAMILIES[manifest.family].adapted.get(name)
    return adapted if adapted in manifest.stages else None


def second(manifest: Manifest, name: str) -> str | None:
    """The stage of rows with more inputs than a denoiser's own graph has; with adapters only where the server has some."""
    prompted = FAMILIES[manifest.family].prompted.get(name)
    if prompted in manifest.stages:
        return prompted
    return _adapted(manifest, name) if Shelf.of_server(manifest) else None


def _stage(manifest: Manifest, name: str, reproducible: bool) -> Stage:
    outputs = manifest.stages[name]["outputs"]
    if manifest.target == CUDA_TARGET:
        from .cuda import CudaStage

        return CudaStage(manifest.stage_path(name), outputs, provider=provider(), reproducible=reproducible)
    if manifest.target not in GPU_TARGETS:
        return OrtStage(manifest.stage_path(name), outputs)
    from .engines import engine_path, profiles
    from .tensorrt.stage import TensorRTStage

    path, made = engine_path(manifest, name, machine(manifest.target)), profiles(manifest, name)
    with GPU_WORK:
        gpu = device(manifest.target)
        return TensorRTStage(gpu, gpu.load(path, _resident(made)), made, kernels="none" if reproducible else "lazy")


def _resident(made: Sequence[Profile]) -> list[int]:
    """The profiles of the model's own size, which most pictures have: others share memory with whoever needs it at the time."""
    return [k for k, profile in enumerate(made) if profile.one_size]


@functools.cache
def provider() -> Provider:
    """What runs graphs for `--target cuda`; its libraries are loaded.

    Raises:
        LibraryMissing: as `load`.
    """
    from .cuda import CUDA

    load(CUDA_TARGET)
    return CUDA


@functools.cache
def device(target: str) -> Device:
    """This process's GPU."""
    from .tensorrt.cuda import CudaDevice

    return CudaDevice(target)


@functools.cache
def _homes(gpu: Any) -> Homes:
    """Where latents are on this process's GPU; base and refiner go on with the same."""
    from .tensorrt.homes import Homes

    return Homes(gpu)


@functools.cache
def machine(target: str) -> Machine:
    from .tensorrt.machine import here

    return here(target)
