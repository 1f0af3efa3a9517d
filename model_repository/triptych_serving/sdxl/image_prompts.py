"""Image prompts (IP-Adapters): what the UNet's second graph is told of a picture to draw like."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from triptych_contract.sdxl.card import SdxlCard
from triptych_contract.sdxl.settings import SdxlSettings

from ..denoiser import PROMPT, Conditioning, Floats
from ..encoded import Read, read_one

if TYPE_CHECKING:
    from collections.abc import Sequence

# The stages of a build with image prompts: pictures to tokens, and the UNet that reads these.
ENCODER, UNET = "image_prompt_encoder", "unet_image_prompts"
# Tokens of all adapters beside each other, of a picture and of none, and the adapters' weights.
TOKENS, SCALES = PROMPT
NEGATIVE_TOKENS = "negative_image_tokens"
# CLIP's own mean and standard deviation of red, green and blue.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def pixel_values(image: Image.Image, side: int) -> Floats:
    """A picture as CLIP sees it, (1, 3, side, side): its middle, as diffusers' `feature_extractor` resizes and crops it."""
    width, height = image.size
    whole = [side * length // min(width, height) for length in image.size]
    first = [(length - side) // 2 for length in whole]
    # Only the middle is resized: the whole of a sliver would be large.
    box = [(first[k] + end) * image.size[k] / whole[k] for end in (0, side) for k in range(2)]
    middle = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, box=_inside(box, image.size))
    values = (np.asarray(middle, np.float32) / np.float32(255) - MEAN) / STD
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def prompted(conditioning: Conditioning, settings: SdxlSettings, card: SdxlCard, read: Read) -> Conditioning:
    """A base's conditioning with the picture of a request: in an unconditional row that of none.

    Raises:
        InvalidRequest: the tokens are missing.
    """
    rows = len(conditioning)
    names = (NEGATIVE_TOKENS, TOKENS)[-rows:]
    scales = np.zeros((rows, len(card.ip_adapters)), np.float32)
    scales[:, card.ip_adapters.index(settings.ip_adapter)] = settings.ip_adapter_scale
    more = {TOKENS: np.concatenate([read_one(read, name) for name in names]), SCALES: scales}
    return replace(conditioning, arrays={**conditioning.arrays, **more})


def _inside(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box within an image, which rounding may have left by a hair."""
    left, top, right, bottom = box
    return max(0.0, left), max(0.0, top), min(float(size[0]), right), min(float(size[1]), bottom)
