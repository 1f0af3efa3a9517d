"""SDXL's stages with low-rank inputs for each row: y = W·x + B·(A·x) at every layer that adapters train.

All A's lie side by side in one input and all B's in another, so a graph has two more inputs however many layers it has:
`lora_a` (batch, Σ in, rank) and `lora_b` (batch, rank, Σ out), in the order of `StageSpec.layers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from triptych_contract.sdxl import FAMILY
from triptych_serving.sdxl.latents import MASKED_PICTURE

from ..stages import StageSpec, TensorSpec
from ..weights import Weights
from .stages import ClipStage, ProjectedClipStage, UNetStage

# Where a component's layers lie that adapters train: a UNet's transformers, a text encoder's layers.
TRAINED = {"unet": ".attentions.", "text_encoder": "encoder.layers.", "text_encoder_2": "encoder.layers."}


class Slabs:
    """The A's and B's of the call that is being made."""

    a: Tensor  # (batch, Σ in, rank)
    b: Tensor  # (batch, rank, Σ out)


class Adapted(nn.Module):
    """A layer over channels, linear or a convolution of 1×1, and what the rows' adapters add to it."""

    def __init__(self, layer: nn.Module, slabs: Slabs, a: slice, b: slice) -> None:
        super().__init__()
        self.layer, self.slabs, self.places = layer, slabs, (a, b)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.slabs.a[:, self.places[0]], self.slabs.b[:, :, self.places[1]]
        if isinstance(self.layer, nn.Linear):
            added = x @ a @ b
        else:
            pixels = x.flatten(2).transpose(1, 2)
            added = torch.unflatten((pixels @ a @ b).transpose(1, 2), 2, x.shape[2:])
        result: Tensor = self.layer(x) + added
        return result


class AdaptedUNetStage(UNetStage):
    """The UNet with adapters."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        self.slabs = _adapt(unet, "unet")

    def forward(  # type: ignore[override] # two inputs more
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
        timestep_cond: Tensor | None = None,
        masked_picture: Tensor | None = None,
        control: Tensor | None = None,
    ) -> Tensor:
        self.slabs.a, self.slabs.b = lora_a, lora_b
        return super().forward(
            sample, timestep, encoder_hidden_states, text_embeds, time_ids, timestep_cond, masked_picture, control
        )


class AdaptedClipStage(ClipStage):
    """A CLIP text encoder with adapters."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__(encoder)
        self.slabs = _adapt(encoder, "text_encoder")

    def forward(  # type: ignore[override] # two inputs more
        self, input_ids: Tensor, clip_skip: Tensor, lora_a: Tensor, lora_b: Tensor
    ) -> tuple[Tensor, ...]:
        self.slabs.a, self.slabs.b = lora_a, lora_b
        return super().forward(input_ids, clip_skip)


class AdaptedProjectedClipStage(AdaptedClipStage, ProjectedClipStage):  # type: ignore[misc] # two inputs more
    """A CLIP text encoder with projection, with adapters."""


MODULES: dict[str, type[nn.Module]] = {
    "unet": AdaptedUNetStage,
    "text_encoder": AdaptedClipStage,
    "text_encoder_2": AdaptedProjectedClipStage,
}


def adapted_specs(weights: Weights, specs: Mapping[str, StageSpec], rank: int) -> dict[str, StageSpec]:
    """The stages of a base that adapters change, with inputs for adapters whose ranks are `rank` in all; by their own names."""
    return {
        adapted: _with_slabs(specs[stage], layers(weights.skeleton(stage), stage), rank)
        for stage, adapted in FAMILY.adapted.items()
    }


def layers(component: nn.Module, stage: str) -> dict[str, tuple[int, int]]:
    """The layers of a component that adapters train, in the order of the slabs: (in, out) channels by the adapters' names."""
    return {name.removeprefix("text_model."): _channels(layer) for name, layer in _trained(component, stage).items()}


def _with_slabs(spec: StageSpec, sizes: Mapping[str, tuple[int, int]], rank: int) -> StageSpec:
    width_in, width_out = (sum(size[k] for size in sizes.values()) for k in range(2))
    slabs = {
        "lora_a": TensorSpec("float32", ("batch", width_in, rank)),
        "lora_b": TensorSpec("float32", ("batch", rank, width_out)),
    }
    # As `forward` has them.
    last = {name: spec.inputs[name] for name in ("timestep_cond", MASKED_PICTURE) if name in spec.inputs}
    inputs = {**{name: one for name, one in spec.inputs.items() if name not in last}, **slabs, **last}
    return replace(spec, inputs=inputs, one_for_all={}, layers=sizes)


def _adapt(component: nn.Module, stage: str) -> Slabs:
    """Put adapted layers in the place of those that adapters train."""
    slabs, a, b = Slabs(), 0, 0
    for name, layer in _trained(component, stage).items():
        width_in, width_out = _channels(layer)
        adapted = Adapted(layer, slabs, slice(a, a + width_in), slice(b, b + width_out))
        component.set_submodule(name, adapted)
        a, b = a + width_in, b + width_out
    return slabs


def _trained(component: nn.Module, stage: str) -> dict[str, nn.Linear | nn.Conv2d]:
    return {
        name: layer
        for name, layer in component.named_modules()
        if TRAINED[stage] in name and (isinstance(layer, nn.Linear) or _over_channels(layer))
    }


def _over_channels(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)


def _channels(layer: nn.Linear | nn.Conv2d) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels
