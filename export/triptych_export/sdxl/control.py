"""ControlNets beside an SDXL: a graph each that makes residuals, and a UNet's graph that takes their sum for each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych_contract.control import LEGAL_NAME
from triptych_contract.sdxl.card import CONTROL, control_stage, picture_stage
from triptych_serving.control import EMBEDDED, PICTURE
from triptych_serving.sdxl.latents import MASKED_PICTURE

from ..documents import read_object
from ..errors import ExportError
from ..stages import StageSpec, TensorSpec
from ..weights import Kind, Weights
from . import residuals

COMPONENT, CLASS, UNION = "controlnet", "ControlNetModel", "ControlNetUnionModel"
# What a control's config must have in common with its UNet's, for its residuals to be the UNet's.
SHARED = (
    "in_channels",
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)
# What pipelines for SDXL do not feed, or what we do not run, and what it must be.
FIXED: Mapping[str, Any] = {
    "conditioning_channels": 3,
    "encoder_hid_dim_type": None,
    "class_embed_type": None,
    "num_class_embeds": None,
    "global_pool_conditions": False,
}
# How a picture's channels may lie.
ORDER = "controlnet_conditioning_channel_order"
ORDERS = {CLASS: ("rgb", "bgr"), UNION: ("rgb",)}


class PictureStage(nn.Module):
    """What a ControlNet reads of a picture, (batch, channels, latent height, latent width); it is the same in all steps."""

    def __init__(self, controlnet: Any) -> None:
        super().__init__()
        self.embedding = controlnet.controlnet_cond_embedding
        self.flips = controlnet.config[ORDER] == "bgr"

    def forward(self, controlnet_cond: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(controlnet_cond.flip(1) if self.flips else controlnet_cond)
        return embedded


class ControlStage(nn.Module):
    """A ControlNet with one timestep for each row, after its `PictureStage`: what it adds, as one tensor."""

    def __init__(self, controlnet: Any) -> None:
        super().__init__()
        controlnet.controlnet_cond_embedding = nn.Identity()
        controlnet.register_to_config(**{ORDER: "rgb"})
        self.controlnet = controlnet

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
        embedded: Tensor,
    ) -> Tensor:
        down, mid = self.controlnet(
            sample,
            timestep,
            encoder_hidden_states,
            **self.followed(embedded),
            added_cond_kwargs={"text_embeds": text_embeds, "time_ids": time_ids},
            return_dict=False,
        )
        return residuals.packed([*down, mid], self.controlnet.config)

    def followed(self, embedded: Tensor) -> dict[str, Any]:
        """The picture as the ControlNet's arguments."""
        return {"controlnet_cond": embedded}


class UnionStage(ControlStage):
    """One of the things that a union of ControlNets can follow."""

    def __init__(self, controlnet: Any, mode: int) -> None:
        super().__init__(controlnet)
        self.mode, modes = mode, controlnet.config.num_control_type
        self.types = nn.Buffer(torch.eye(modes)[mode : mode + 1])
        for layer in controlnet.transformer_layes:
            layer.attn = Alone(layer.attn)

    def followed(self, embedded: Tensor) -> dict[str, Any]:
        types = self.types.expand(len(embedded), -1)
        return {"controlnet_cond": [embedded], "control_type": types, "control_type_idx": [self.mode]}


class Alone(nn.Module):
    """A union's attention, each row by itself: it looks from row to row of the batch, and a pipeline's rows are equal there."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width = attention.embed_dim
        self.value = nn.Linear(width, width)
        self.value.weight, self.value.bias = (
            nn.Parameter(stacked[2 * width :].detach().clone())
            for stacked in (attention.in_proj_weight, attention.in_proj_bias)
        )
        self.out = attention.out_proj

    def forward(self, x: Tensor, *_: Tensor, **__: Any) -> tuple[Tensor]:
        return (self.out(self.value(x)),)


@dataclass(frozen=True)
class ControlFolder(Weights):
    """A ControlNet's folder: a config and weights, without a pipeline around; of a union the `mode` that is exported."""

    name: str = ""
    mode: int | None = None

    @classmethod
    def parse(cls, given: str) -> ControlFolder:
        """Read "NAME=FOLDER", for a union "NAME=FOLDER:MODE"; check that the folder holds a ControlNet, and all of it.

        Raises:
            ExportError: it does not, or the name is not legal.
        """
        name, equals, path = given.partition("=")
        if not equals or not LEGAL_NAME.fullmatch(name):
            legal = "NAME=FOLDER or NAME=FOLDER:MODE, the name of a … z, 0 … 9, - and _, at most 40 characters"
            raise ExportError(f"--control: {given!r} given; legal: {legal}")
        path, mode = (path, "") if Path(path).is_dir() else path.rpartition(":")[::2]
        folder = Path(path or mode)
        if not (folder / "config.json").is_file():
            raise ExportError(
                f"--control {name}: {folder} has no config.json; supported: a ControlNet's folder, as diffusers saves it"
            )
        found = read_object(folder / "config.json").get("_class_name")
        if found not in (CLASS, UNION):
            raise ExportError(f"--control {name}: config.json: _class_name {found!r}; supported: {CLASS}, {UNION}")
        kind = Kind("StableDiffusionXLControlNetPipeline", {COMPONENT: found}, ())
        one = cls(
            folder.resolve(), {COMPONENT: ["diffusers", found]}, kind, name, int(mode) if mode.isdecimal() else None
        )
        one._check_mode(mode)
        one.check(COMPONENT)
        return one

    @property
    def module(self) -> Callable[[Any], nn.Module]:
        """Its stage, around it."""
        return ControlStage if self.mode is None else partial(UnionStage, mode=self.mode)

    def _check_mode(self, given: str) -> None:
        modes = self.config(COMPONENT).get("num_control_type", 0)
        legal = f"NAME=FOLDER:MODE, 0 … {modes - 1}: a union of ControlNets" if modes else "NAME=FOLDER: it is no union"
        if bool(given) != bool(modes) or (modes and (self.mode is None or self.mode >= modes)):
            raise ExportError(
                f"--control {self.name}: {f'mode {given!r}' if given else 'no mode'} given; legal: {legal}"
            )

    def config(self, part: str) -> dict[str, Any]:
        return {**super().config(part), "control_mode": self.mode}

    def folders(self, part: str) -> tuple[Path, ...]:  # noqa: ARG002 - it has one part
        return (self.folder,)

    def check_beside(self, unet: Mapping[str, Any], vae_scale_factor: int) -> None:
        """What it adds must be what this UNet takes, and its picture as large as the VAE's.

        Raises:
            ExportError: it is not; names the setting.
        """
        own, unet = self.config(COMPONENT), {**unet, "in_channels": unet["out_channels"]}  # a mask is the UNet's alone
        depth = unet["layers_per_block"]
        if not isinstance(depth, int) and len({*depth}) == 1:
            unet = {**unet, "layers_per_block": depth[0]}
        for setting in SHARED:
            if _plain(own.get(setting)) != _plain(unet.get(setting)):
                self._refuse(setting, own.get(setting), f"the UNet's, {unet.get(setting)!r}")
        for setting, legal in FIXED.items():
            if own.get(setting, legal) != legal:
                self._refuse(setting, own.get(setting), repr(legal))
        orders = ORDERS[own["_class_name"]]
        if (order := own.get(ORDER, orders[0])) not in orders:
            self._refuse(ORDER, order, " or ".join(map(repr, orders)))
        halvings = len(own["conditioning_embedding_out_channels"]) - 1
        if 2**halvings != vae_scale_factor:
            self._refuse(
                "conditioning_embedding_out_channels",
                own["conditioning_embedding_out_channels"],
                f"as many as halve a picture to the VAE's latents, {vae_scale_factor} pixels each",
            )

    def _refuse(self, setting: str, given: Any, legal: str) -> None:
        raise ExportError(f"--control {self.name}: config.json: {setting} {given!r}; supported: {legal}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def parsed(given: Sequence[str]) -> tuple[ControlFolder, ...]:
    """Read the options of an export.

    Raises:
        ExportError: one is wrong, or two have one name.
    """
    controls = tuple(map(ControlFolder.parse, given))
    names = [one.name for one in controls]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ExportError(f"--control: {twice} given twice; legal: each name once")
    return controls


def added(unet: Mapping[str, Any]) -> TensorSpec:
    """The tensor of all that controls add to a row of a UNet."""
    return TensorSpec("float32", ("batch", residuals.channels(unet), "least_height", "least_width"))


def embedded(unet: Mapping[str, Any]) -> TensorSpec:
    """The tensor of what a control reads of a picture."""
    return TensorSpec("float32", ("batch", unet["block_out_channels"][0], "latent_height", "latent_width"))


def controlled_spec(unet: StageSpec, config: Mapping[str, Any]) -> StageSpec:
    """The UNet's stage with what controls add; its own last, as `forward` has it."""
    return replace(unet, inputs={**unet.inputs, CONTROL: added(config)}, one_for_all={})


def picture_specs(controls: Sequence[ControlFolder], config: Mapping[str, Any]) -> dict[str, StageSpec]:
    """The stage that reads each control's picture, of levels 0 … 1."""
    picture = TensorSpec("float32", ("batch", 3, "height", "width"))
    spec = StageSpec(COMPONENT, {PICTURE: picture}, {EMBEDDED: embedded(config)})
    return {picture_stage(one.name): spec for one in controls}


def control_specs(
    controls: Sequence[ControlFolder], unet: StageSpec, config: Mapping[str, Any]
) -> dict[str, StageSpec]:
    """The stage of each control; it reads what any UNet reads, and what was read of its picture."""
    read = {name: spec for name, spec in unet.inputs.items() if name not in ("timestep_cond", MASKED_PICTURE)}
    spec = StageSpec(COMPONENT, {**read, EMBEDDED: embedded(config)}, {CONTROL: added(config)})
    return {control_stage(one.name): spec for one in controls}
