"""Receipts: what a file says of itself, and the request that makes it again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import invalid

IMAGE_DESCRIPTION = 0x010E
SETTINGS = (
    "prompt",
    "negative_prompt",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "height",
    "width",
    "sampler",
    "schedule",
    "output_format",
)


def read_receipt(path: Path) -> dict[str, Any]:
    """The receipt inside a PNG, JPEG or WebP that Triptych made.

    Raises:
        InvalidRequest: the file is no picture, or holds no receipt.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            text = image.info.get("triptych") or image.getexif().get(IMAGE_DESCRIPTION)
        receipt = json.loads(text or "null")
    except (UnidentifiedImageError, ValueError, OSError) as error:
        raise invalid(str(path), f"an unreadable file ({error})", "a picture that Triptych made") from None
    if not isinstance(receipt, dict) or not set(SETTINGS) <= set(receipt):
        raise invalid(str(path), "a picture without a receipt", "a picture that Triptych made")
    return receipt


def request_of(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of `Client.generate` that ask for the same picture."""
    return {name: receipt[name] for name in SETTINGS}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What two receipts say differently of what made their pictures, as `runtime.onnxruntime: 1.30.0 → 1.31.1`."""
    old, new = dict(_flat(before)), dict(_flat(after))
    return [f"{name}: {old.get(name)} → {new.get(name)}" for name in {**old, **new} if old.get(name) != new.get(name)]


def _flat(receipt: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in receipt.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
