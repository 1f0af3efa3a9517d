"""IP-Adapters: an encoder that makes tokens of a picture, and the UNet with attention to them beside the prompt's.

The tokens of all adapters lie beside each other in one input, so the UNet's graph has two more inputs however many there are:
`image_tokens` (batch, Σ tokens, width) and `image_scales` (batch, adapters), in the order of the card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych_serving.sdxl.image_prompts import NEGATIVE_TOKENS, SCALES, TOKENS
from triptych_serving.sdxl.latents import MASKED_PICTURE

from ..documents import read_object
from ..errors import ExportError, on_one_line
from ..stages import StageSpec, TensorSpec
from ..weights import Kind, Weights, cached_sha256, few
from .stages import UNetStage

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
CLASS = "CLIPVisionModelWithProjection"
PLAIN_TOKENS = 4
SUPPORTED = "IP-Adapters of SDXL, plain or plus, as ip-adapter_sdxl_vit-h and ip-adapter-plus_sdxl_vit-h"


@dataclass(frozen=True)
class IpAdapter:
    """One file of safetensors, and what requests call it."""

    name: str
    path: Path

    @classmethod
    def parse(cls, given: str) -> IpAdapter:
        """Read "NAME=FILE".

        Raises:
            ExportError: there is no such file of safetensors, or no such name.
        """
        name, _, path = given.partition("=")
        made = cls(name, Path(path))
        if not NAME.fullmatch(name) or made.path.suffix != ".safetensors" or not made.path.is_file():
            legal = "NAME=FILE, a .safetensors file that is there and a name of letters, digits, '.', '_' and '-'"
            raise ExportError(f"--ip-adapter: {given!r} given; legal: {legal}")
        return made

    @property
    def source(self) -> str:
        """The file by content, and the name, which a graph's users know it by."""
        return f"{self.name} {cached_sha256(self.path.resolve())}"

    @cached_property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        """The shape of each tensor by name, off the file's header.

        Raises:
            ExportError: it is no whole safetensors file.
        """
        from safetensors import safe_open

        try:
            with safe_open(self.path, "pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # whatever a damaged file leads to
            raise ExportError(f"{self.path}: {on_one_line(error)}; supported: {SUPPORTED}") from error

    @property
    def plus(self) -> bool:
        """Whether its tokens are made of the encoder's hidden states, not of its embedding."""
        return "image_proj.latents" in self.shapes

    @property
    def tokens(self) -> int:
        """How many tokens it makes of a picture."""
        return self.shapes["image_proj.latents"][1] if self.plus else PLAIN_TOKENS

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Its tensors as diffusers takes them."""
        from safetensors.torch import load_file

        parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in load_file(self.path).items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        return parts

    def check(self, unet: Weights, encoder: Weights) -> None:
        """Compare it with the UNet and the encoder that it is for.

        Raises:
            ExportError: it is of another kind, or another model's; names what differs.
        """
        attends = {f"ip_adapter.{name}": shape for name, shape in _attention(unet).items()}
        found = {name: shape for name, shape in self.shapes.items() if not name.startswith("image_proj.")}
        if not self.plus and "image_proj.proj.weight" not in self.shapes:
            raise ExportError(f"{self.path}: image_proj of another kind; supported: {SUPPORTED}")
        if differ := sorted(name for name in {*attends, *found} if attends.get(name) != found.get(name)):
            raise ExportError(f"{self.path}: {len(differ)} weights that this UNet does not have, or has not ({few(differ)}); "
                              f"supported: {SUPPORTED}")  # fmt: skip
        (config,) = (encoder.config(part) for part in encoder.kind.components)
        read, width = ("proj_in", config["hidden_size"]) if self.plus else ("proj", config["projection_dim"])
        shape = self.shapes.get(f"image_proj.{read}.weight", (0, 0))
        if shape[1] != width:
            raise ExportError(
                f"{self.path}: image_proj.{read} reads {shape[1]} channels; supported: the image encoder's, {width}"
            )

    def projection(self) -> nn.Module:
        """What makes tokens of the encoder's output.

        Raises:
            ExportError: diffusers does not take it.
        """
        from diffusers.loaders.unet import UNet2DConditionLoadersMixin as Loaders

        try:
            made: nn.Module = Loaders()._convert_ip_adapter_image_proj_to_diffusers(  # type: ignore[no-untyped-call]
                self.state()["image_proj"], low_cpu_mem_usage=False
            )
        except Exception as error:  # whatever weights of another architecture lead to
            raise ExportError(f"{self.path}: {on_one_line(error)}; supported: {SUPPORTED}") from error
        return made.float().eval().requires_grad_(False)


def image_encoder(folder: Path) -> Weights:
    """Open the folder of a CLIPVisionModelWithProjection.

    Raises:
        ExportError: it is none, or its weights are not safetensors or not those of its config.
    """
    given = folder.resolve()
    read_object(given / "config.json")
    weights = Weights(given.parent, {}, Kind("", {given.name: CLASS}, ()))
    weights.files(given.name)
    weights.skeleton(given.name)
    return weights


def encoder_spec(encoder: Weights, unet: Weights, adapters: Sequence[IpAdapter]) -> StageSpec:
    """The stage that makes tokens of pictures, and has those of none beside them."""
    (component,) = encoder.kind.components
    side = encoder.config(component)["image_size"]
    tokens = _tokens(unet, adapters)
    pixels = TensorSpec("float32", ("batch", 3, side, side))
    return StageSpec(component, {"pixel_values": pixels}, {TOKENS: tokens, NEGATIVE_TOKENS: tokens})


def unet_spec(spec: StageSpec, unet: Weights, adapters: Sequence[IpAdapter]) -> StageSpec:
    """The UNet's stage with the inputs for image prompts."""
    more = {TOKENS: _tokens(unet, adapters), SCALES: TensorSpec("float32", ("batch", len(adapters)))}
    # As `forward` has them.
    last = {name: spec.inputs[name] for name in ("timestep_cond", MASKED_PICTURE) if name in spec.inputs}
    inputs = {**{name: one for name, one in spec.inputs.items() if name not in last}, **more, **last}
    return replace(spec, inputs=inputs, one_for_all={})


class ImagePromptStage(nn.Module):
    """CLIP's image encoder and every adapter's projection. An unconditional row's tokens do not depend on the picture."""

    negative: Tensor

    def __init__(self, encoder: Any, adapters: Sequence[IpAdapter]) -> None:
        super().__init__()
        self.encoder, self.plus = encoder, [one.plus for one in adapters]
        self.projections = nn.ModuleList([one.projection() for one in adapters])
        side = encoder.config.image_size
        with torch.no_grad():
            embeds, states = self._encoded(torch.zeros(1, 3, side, side))
            self.register_buffer("negative", self._projected(torch.zeros_like(embeds), states))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        return self._projected(*self._encoded(pixel_values)), self.negative.expand(pixel_values.shape[0], -1, -1)

    def _encoded(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        made = self.encoder(pixel_values, output_hidden_states=True)
        return made.image_embeds, made.hidden_states[-2]

    def _projected(self, embeds: Tensor, states: Tensor) -> Tensor:
        parts = [one(states if plus else embeds) for one, plus in zip(self.projections, self.plus, strict=True)]
        return torch.cat(parts, dim=1)


class Scales:
    """How much each adapter says, of the call that is being made."""

    of_rows: Tensor  # (batch, adapters)


class Scaled(nn.Module):
    """An adapter's values, row by row as strong as the call says."""

    def __init__(self, layer: nn.Module, scales: Scales, adapter: int) -> None:
        super().__init__()
        self.layer, self.scales, self.adapter = layer, scales, adapter

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = (
            self.layer(x) * self.scales.of_rows[:, self.adapter, None, None, None]
        )  # of (batch, 1, tokens, width)
        return scaled


class Projected(nn.Module):
    """In the place of the UNet's own projections: tokens come projected."""

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        return [one[:, None] for one in tokens]


class ImagePromptedUNetStage(UNetStage):
    """The UNet with image prompts."""

    def __init__(self, unet: Any, adapters: Sequence[IpAdapter]) -> None:
        super().__init__(unet)
        self.counts, self.scales = [one.tokens for one in adapters], Scales()
        unet._load_ip_adapter_weights([one.state() for one in adapters], low_cpu_mem_usage=False)
        unet.encoder_hid_proj = Projected()
        for processor in unet.attn_processors.values():
            for k, layer in enumerate(getattr(processor, "to_v_ip", ())):
                processor.to_v_ip[k] = Scaled(layer, self.scales, k)
        unet.eval().requires_grad_(False)

    def forward(  # type: ignore[override] # two inputs more
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
        image_tokens: Tensor,
        image_scales: Tensor,
        timestep_cond: Tensor | None = None,
        masked_picture: Tensor | None = None,
        control: Tensor | None = None,
    ) -> Tensor:
        self.scales.of_rows = image_scales
        self.added = {"image_embeds": torch.split(image_tokens, self.counts, dim=1)}
        return super().forward(
            sample, timestep, encoder_hidden_states, text_embeds, time_ids, timestep_cond, masked_picture, control
        )


def _tokens(unet: Weights, adapters: Sequence[IpAdapter]) -> TensorSpec:
    width = unet.config("unet")["cross_attention_dim"]
    return TensorSpec("float32", ("batch", sum(one.tokens for one in adapters), width))


def _attention(unet: Weights) -> dict[str, tuple[int, int]]:
    """The shapes of an adapter's weights for a UNet, by the names in its file: keys and values of each cross-attention."""
    skeleton, width = unet.skeleton("unet"), unet.config("unet")["cross_attention_dim"]
    attends = [name.removesuffix(".processor") for name in skeleton.attn_processors]
    crossing = [skeleton.get_submodule(name) for name in attends if not name.endswith("attn1")]
    return {
        f"{2 * k + 1}.to_{part}_ip.weight": (one.to_q.out_features, width)
        for k, one in enumerate(crossing)
        for part in ("k", "v")
    }
