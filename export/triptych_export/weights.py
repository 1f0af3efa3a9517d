"""An SDXL folder in diffusers layout: its configs, its weights (safetensors only), and what they ask of a server."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import ExportError


@dataclass(frozen=True)
class Kind:
    """A kind of folder: diffusers' pipeline class, the components we export from it, its tokenizers."""

    pipeline: str
    components: tuple[str, ...]
    tokenizers: tuple[str, ...]


BASE = Kind(
    "StableDiffusionXLPipeline", ("text_encoder", "text_encoder_2", "unet", "vae"), ("tokenizer", "tokenizer_2")
)
REFINER = Kind("StableDiffusionXLImg2ImgPipeline", ("text_encoder_2", "unet"), ("tokenizer_2",))


@dataclass(frozen=True)
class Weights:
    """A checked folder. Nothing of it is loaded yet."""

    folder: Path
    index: Mapping[str, Any]
    kind: Kind

    @classmethod
    def open(cls, folder: Path, kind: Kind = BASE) -> Weights:
        """Check the folder's parts.

        Raises:
            ExportError: not of this kind in diffusers layout, a part is missing, or its weights are not safetensors.
        """
        index_file = folder / "model_index.json"
        if not index_file.is_file():
            raise ExportError(f"{folder}: has no model_index.json; a folder in diffusers layout is needed")
        index = json.loads(index_file.read_text())
        if index.get("_class_name") != kind.pipeline:
            raise ExportError(f"model_index.json: _class_name {index.get('_class_name')!r}; supported: {kind.pipeline}")
        weights = cls(folder.resolve(), index, kind)
        for part in (*kind.components, *kind.tokenizers, "scheduler"):
            if not index.get(part, [None])[0] or not (folder / part).is_dir():
                needed = ", ".join((*kind.components, *kind.tokenizers))
                raise ExportError(f"{part}: missing from {folder}; such a folder has {needed}")
        for component in kind.components:
            weights.files(component)
        weights._check_unet()
        return weights

    def config(self, part: str) -> dict[str, Any]:
        """The JSON config of a component, or of the scheduler."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        document: dict[str, Any] = json.loads((self.folder / part / name).read_text())
        return document

    @cached_property
    def variant(self) -> str | None:
        """ "fp16" where the folder holds only half-precision files under their variant name, else None."""
        plain = any(".fp16." not in file.name for file in (self.folder / "unet").glob("*.safetensors"))
        return None if plain else "fp16"

    def files(self, component: str) -> list[Path]:
        """The safetensors files of a component, in the variant that is loaded."""
        found = sorted((self.folder / component).glob("*.safetensors"))
        chosen = [file for file in found if (".fp16." in file.name) == (self.variant == "fp16")]
        if not chosen:
            raise ExportError(f"{component}: no .safetensors file in {self.folder / component}; pickles are not read")
        return chosen

    def load(self, component: str) -> Any:
        """A component as a torch module in evaluation mode, computing in float32."""
        import diffusers
        import torch
        import transformers

        library, name = self.index[component]
        module = getattr({"diffusers": diffusers, "transformers": transformers}[library], name).from_pretrained(
            self.folder / component,
            dtype=torch.float32,
            variant=self.variant,
            use_safetensors=True,
            low_cpu_mem_usage=True,
            local_files_only=True,
        )
        return module.eval().requires_grad_(False)

    def load_tokenizer(self, part: str) -> Any:
        """A tokenizer as transformers reads it."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder / part, local_files_only=True)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, along a side."""
        return int(2 ** (len(self.config("vae")["block_out_channels"]) - 1))

    @property
    def latent_multiple(self) -> int:
        """The UNet halves its latents once per block but the first; sizes must divide evenly all the way down."""
        return int(2 ** (len(self.config("unet")["block_out_channels"]) - 1))

    @property
    def call_defaults(self) -> dict[str, Any]:
        """The defaults of diffusers' own pipeline call."""
        import diffusers

        signature = inspect.signature(getattr(diffusers, self.kind.pipeline).__call__)
        return {name: parameter.default for name, parameter in signature.parameters.items()}

    def _check_unet(self) -> None:
        config = self.config("unet")
        if config.get("addition_embed_type") != "text_time":
            raise ExportError(
                f"unet/config.json: addition_embed_type {config.get('addition_embed_type')!r}; supported: 'text_time'"
            )
        if config["in_channels"] != config["out_channels"]:
            raise ExportError(
                f"unet/config.json: in_channels {config['in_channels']}; supported: as many as out_channels, "
                f"{config['out_channels']} (a mask is blended in, not concatenated)"
            )
