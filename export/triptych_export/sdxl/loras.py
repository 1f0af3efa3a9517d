"""LoRA files, merged into the weights that an export reads.

Names are turned into the model's by diffusers. The products are added here: diffusers 0.42 with PEFT drops the alphas of kohya's
files where a file has several.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from triptych_contract.sdxl.card import MergedLora

from ..errors import ExportError, on_one_line
from ..optimum import OptimumFolder
from ..weights import Weights, cached_sha256, combined, few

PARTS = ("unet", "text_encoder", "text_encoder_2")
# What a file of low-rank pairs holds, in kohya's, diffusers' and PEFT's words. DoRA, LoHa and LoKr have other words.
LEGAL = re.compile(r"[._]lora(_linear_layer)?[._](up|down)\.weight$|\.lora_[AB]\.weight$|\.alpha$")
SUPPORTED = "low-rank pairs (LoRA, also of convolutions) for layers of this model's UNet and text encoders"
PEFTS = (
    "alpha_pattern",
    "use_dora",
    "use_rslora",
)  # settings that PEFT notes in a file and that would change what is added


class Pair(NamedTuple):
    """What is added to one weight: scale · up · down."""

    down: Any  # (rank, in, …)
    up: Any  # (out, rank, 1, …)
    scale: float


@dataclass(frozen=True)
class Lora:
    """One file, and how much of it is added."""

    path: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, given: str) -> Lora:
        """Read "FILE" or "FILE:WEIGHT".

        Raises:
            ExportError: there is no such file of safetensors, or the weight is no finite number.
        """
        path, _, weight = (given, "", "1") if Path(given).is_file() else given.rpartition(":")
        refusal = ExportError(
            f"--lora: {given!r} given; legal: FILE or FILE:WEIGHT, a .safetensors file that is there and a finite number"
        )
        try:
            lora = cls(Path(path), float(weight))
        except ValueError:
            raise refusal from None
        there = lora.path.suffix == ".safetensors" and lora.path.is_file() and lora.path.stem.isprintable()
        if not there or not math.isfinite(lora.weight):
            raise refusal
        return lora

    @property
    def card(self) -> MergedLora:
        """What manifests and receipts say of it."""
        return MergedLora(self.path.stem, cached_sha256(self.path.resolve()), self.weight)

    def read(self, weights: Weights) -> dict[str, dict[str, Pair]]:
        """Give what is added, by part of the model and name of the weight.

        Raises:
            ExportError: the file cannot be read, or has weights for which the model has no layer of their shape; names them.
        """
        try:
            state, alphas, settings = self._state(weights)
            by_part: dict[str, dict[str, Any]] = {}
            for name, tensor in state.items():
                by_part.setdefault(name.partition(".")[0], {})[name] = tensor
            self._refuse([name for part in by_part.keys() - set(PARTS) for name in by_part[part]])
            return {part: self._pairs(part, own, alphas, settings, weights) for part, own in by_part.items()}
        except ExportError:
            raise
        except Exception as error:  # whatever a damaged or foreign file leads to
            raise ExportError(f"{self.path}: {on_one_line(error)}; supported: {SUPPORTED}") from error

    def _state(self, weights: Weights) -> tuple[dict[str, Any], dict[str, float], dict[str, Any]]:
        """The tensors by diffusers' names, with the part in front; kohya's alphas by what it names them; PEFT's settings."""
        from diffusers import StableDiffusionXLPipeline
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
            names = list(file.keys())
            settings = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
            self._refuse(sorted(name for name in names if not LEGAL.search(name)))
            tensors = {name: file.get_tensor(name) for name in names}
        for name in sorted(name for name in settings if name.endswith(PEFTS) and settings[name]):
            raise ExportError(f"{self.path}: {name} {settings[name]!r}; supported: plain LoRA")
        config = SimpleNamespace(**weights.config("unet"))
        state, alphas = StableDiffusionXLPipeline.lora_state_dict(tensors, unet_config=config)
        return state, alphas or {}, settings

    def _pairs(
        self,
        part: str,
        state: Mapping[str, Any],
        alphas: Mapping[str, float],
        settings: Mapping[str, Any],
        weights: Weights,
    ) -> dict[str, Pair]:
        shapes, sides = weights.shapes(part), _by_layer(part, state)
        pairs, unknown = {}, []
        for layer, found in sides.items():
            known = next(
                (name for name in (layer, layer.removeprefix("text_model.")) if f"{name}.weight" in shapes), layer
            )
            shape = shapes.get(f"{known}.weight")
            if shape is None or found.keys() != {"A", "B"} or not _multiply(found["A"][1], found["B"][1], shape):
                unknown += [name for name, _ in found.values()]
                continue
            (name, down), (_, up) = found["A"], found["B"]
            alpha = alphas.get(f"{name}.alpha", alphas.get(f"{name.split('.lora.')[0]}.alpha"))
            alpha = settings.get(f"{part}.lora_alpha") if alpha is None else alpha
            pairs[f"{known}.weight"] = Pair(down, up, 1.0 if alpha is None else alpha / len(down))
        self._refuse(sorted(unknown))
        return pairs

    def _refuse(self, names: Sequence[str]) -> None:
        if names:
            raise ExportError(f"{self.path}: {len(names)} unknown weights ({few(names)}); supported: {SUPPORTED}")


class MergedWeights(Weights):
    """A folder whose UNet and text encoders have LoRA files added to them."""

    loras: Mapping[Lora, frozenset[str]]  # the parts that each changes

    @classmethod
    def of(cls, weights: Weights, loras: Sequence[Lora]) -> MergedWeights:
        """Check the files against the folder.

        Raises:
            ExportError: one does not fit, or the folder has graphs in the place of weights.
        """
        if isinstance(weights, OptimumFolder):
            raise ExportError("--lora: given; not an option of Optimum's folders, whose graphs are made")
        made = cls(weights.folder, weights.index, weights.kind)
        object.__setattr__(made, "loras", {lora: frozenset(lora.read(weights)) for lora in loras})
        return made

    def source(self, component: str) -> str:
        own = [f"{lora.card.sha256} {lora.weight}" for lora in self._of(component)]
        return combined([super().source(component), *own]) if own else super().source(component)

    def load(self, component: str, as_stored: bool = False) -> Any:
        module = super().load(component, as_stored)
        parameters = dict(module.named_parameters())
        for lora in self._of(component):
            for name, pair in lora.read(self)[component].items():
                parameters[name].data += (lora.weight * pair.scale * _product(pair)).to(parameters[name].dtype)
        return module

    def _of(self, component: str) -> list[Lora]:
        return [lora for lora, parts in self.loras.items() if component in parts]


def _by_layer(part: str, state: Mapping[str, Any]) -> dict[str, dict[str, tuple[str, Any]]]:
    """What is there for each layer of a part: A (down) and B (up), each with the name that it has in `state`."""
    from diffusers.utils import state_dict_utils as names

    tensors: dict[str, Any] = {name.removeprefix(f"{part}."): (name, tensor) for name, tensor in state.items()}
    if part == "unet":
        tensors = names.convert_unet_state_dict_to_peft(tensors)  # type: ignore[no-untyped-call]
    else:
        tensors = names.convert_state_dict_to_peft(names.convert_state_dict_to_diffusers(tensors))  # type: ignore[no-untyped-call]
    layers: dict[str, dict[str, tuple[str, Any]]] = {}
    for name, found in tensors.items():
        layer, _, side = name.removesuffix(".weight").rpartition(".lora_")
        layers.setdefault(layer, {})[side] = found
    return layers


def _multiply(down: Any, up: Any, shape: Sequence[int]) -> bool:
    """Whether `up` · `down` is a weight of this shape."""
    return up.shape[1] == down.shape[0] and (up.shape[0], *down.shape[1:]) == tuple(shape) and set(up.shape[2:]) <= {1}


def _product(pair: Pair) -> Any:
    return (pair.up.flatten(1).float() @ pair.down.flatten(1).float()).view(pair.up.shape[0], *pair.down.shape[1:])
