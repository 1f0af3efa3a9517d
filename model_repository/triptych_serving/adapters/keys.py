"""The names of an adapter's tensors, as kohya's scripts, PEFT and diffusers of all ages write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

# What a name begins with → the stage that it is about.
PREFIXES = {
    "lora_unet_": "unet",
    "unet.": "unet",
    "lora_te1_": "text_encoder",
    "text_encoder.": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "text_encoder_2.": "text_encoder_2",
}
A, B, ALPHA = "a", "b", "alpha"
ENDINGS = {
    A: re.compile(r"[._](lora_A|lora_down|lora\.down|lora_linear_layer\.down)(\.default)?\.weight$"),
    B: re.compile(r"[._](lora_B|lora_up|lora\.up|lora_linear_layer\.up)(\.default)?\.weight$"),
    ALPHA: re.compile(r"\.alpha$"),
}
# Marks of what is no sum of low-rank products over layers that are inputs of ours.
OTHERS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon",
    "oft_": "OFT",
    "boft": "BOFT",
    "on_input": "(IA)³",
    ".diff": "differences of whole weights",
    "lora_B.bias": "biases",
}
# Names of diffusers' layers as older versions of it, and SDXL's own code, had them.
_PROCESSOR = re.compile(r"_processor_to_(q|k|v|out)$")


class Key(NamedTuple):
    """What a tensor is: A, B or ALPHA of a layer of a stage."""

    stage: str
    layer: str
    part: str


class Names:
    """Finds the layers of a build, `layers` of each stage, by any of their names."""

    def __init__(self, layers: Mapping[str, Mapping[str, object]]) -> None:
        self._layers = {stage: _aliases(names) for stage, names in layers.items()}

    def find(self, name: str) -> Key | None:
        """Return what a tensor of this name is; None for one that no layer here has."""
        found = next(((part, match) for part, ending in ENDINGS.items() if (match := ending.search(name))), None)
        if found is None:
            return None
        part, match = found
        path = name[: match.start()]
        prefix = next((prefix for prefix in PREFIXES if path.startswith(prefix)), "")
        stage = PREFIXES.get(prefix, "unet")  # PEFT saves one model's adapter without saying whose
        path = path.removeprefix(prefix).removeprefix("base_model.model.").replace(".", "_")
        path = _PROCESSOR.sub(lambda one: f"_to_{one[1]}" + "_0" * (one[1] == "out"), path)
        layer = self._layers.get(stage, {}).get(path.removeprefix("text_model_"))
        return None if layer is None else Key(stage, layer, part)


def other_kind(name: str) -> str | None:
    """Return what adapters with a tensor of this name are called that are no LoRA."""
    return next((kind for mark, kind in OTHERS.items() if mark in name), None)


def _aliases(layers: Mapping[str, object]) -> dict[str, str]:
    """The layers by their names with underscores for dots, and as SDXL's own code numbers its blocks."""
    found = {layer.replace(".", "_"): layer for layer in layers}
    downs = [int(match[1]) for layer in layers if (match := re.match(r"down_blocks\.\d+\.attentions\.(\d+)\.", layer))]
    each = max(downs, default=0) + 2  # layers of a block, and one that changes the size
    for layer in layers:
        if match := re.match(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.(.*)", layer):
            number = int(match[2]) * each + int(match[3])
            block = f"input_blocks_{number + 1}" if match[1] == "down" else f"output_blocks_{number}"
            found[f"{block}_1_{match[4].replace('.', '_')}"] = layer
        elif match := re.match(r"mid_block\.attentions\.0\.(.*)", layer):
            found[f"middle_block_1_{match[1].replace('.', '_')}"] = layer
    return found
