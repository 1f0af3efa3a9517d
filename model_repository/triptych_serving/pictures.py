"""Pictures that requests bring along: checked by their headers first, decoded where they are needed."""

from __future__ import annotations

import hashlib
import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from triptych_contract.errors import InvalidRequest, invalid
from triptych_contract.parameters import Picture

from .containers import TooMany, claims, notes_first
from .proofs import LEGAL

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 64_000_000
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)


def inspect(field: str, data: bytes) -> Picture:
    """Check a file by its header and the lengths of its parts; nothing is decoded.

    Raises:
        InvalidRequest: too large, of too many parts, cut off, or no PNG, JPEG or WebP.
    """
    if len(data) > MAX_BYTES:
        raise invalid(field, f"{len(data)} bytes", f"at most {MAX_BYTES} bytes")
    _check_claims(field, data)
    image = _open(field, data)
    width, height = image.size
    if _turned(field, image):
        width, height = height, width
    return Picture(hashlib.sha256(data).hexdigest(), height, width)


def _check_claims(field: str, data: bytes) -> None:
    try:
        claimed = claims(data)
    except TooMany as error:
        raise invalid(field, error.given, error.legal) from None
    except ValueError as error:
        raise _damaged(field, error) from None
    if claimed is None:
        return  # Pillow knows the format as little
    if claimed.width * claimed.height > MAX_PIXELS:
        raise invalid(field, f"{claimed.width}×{claimed.height} pixels", f"at most {MAX_PIXELS} pixels")
    if claimed.bytes < claimed.least_bytes:
        raise _damaged(field, ValueError(f"{claimed.width}×{claimed.height} pixels in {claimed.bytes} bytes"))


def check_file(field: str, data: bytes, picture: Picture | None) -> None:
    """Check that a file is the one that settings speak of, since what is answered belongs to those.

    Raises:
        InvalidRequest: it is another.
    """
    if (hashlib.sha256(data).hexdigest() if data else None) != (picture and picture.sha256):
        raise invalid(field, "another file", LEGAL)


def decoded(field: str, data: bytes, *, on_black: bool = False) -> Image.Image:
    """A file as people look at it, grey or coloured, of 8 bits. `on_black` what is transparent is black.

    Raises:
        InvalidRequest: the file is damaged.
    """
    try:
        image = _open(field, data)
        ImageOps.exif_transpose(image, in_place=True)  # it, and `convert`, would copy what needs no change
        image.load()
        return _eight_bits(_on_black(image) if on_black else image)
    except Exception as error:  # Pillow raises whatever it stumbles over
        raise _damaged(field, error) from None


def fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """An image at this size, as diffusers' `VaeImageProcessor` resizes it."""
    return image.resize((width, height), Image.Resampling.LANCZOS)


def packed(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """An image as a control sees it, (3, height, width), resized as diffusers' `prepare_control_image` does."""
    return np.ascontiguousarray(np.asarray(fitted(image, height, width).convert("RGB")).transpose(2, 0, 1))


def pixels(image: Image.Image) -> NDArray[np.float32]:
    """An image as the VAE encoder sees it: (1, 3, height, width), −1 … 1."""
    values = np.asarray(image.convert("RGB"), np.float32) / np.float32(255)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None] * np.float32(2) - np.float32(1))


def white(mask: Image.Image) -> NDArray[np.float32]:
    """Where a mask is white, which is painted anew: (1, 1, height, width), 1 from half white on, else 0."""
    values = np.asarray(mask.convert("L"), np.float32) / np.float32(255)
    return (values >= 0.5).astype(np.float32)[None, None]


def _on_black(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data or image.mode.startswith("I"):
        return image
    image = image.convert("RGBA")
    return Image.composite(image.convert("RGB"), Image.new("RGB", image.size), image.getchannel("A"))


def _eight_bits(image: Image.Image) -> Image.Image:
    """As "L" or "RGB". Of 16 bits the upper 8, as Pillow takes them of colours; grey of 16 bits it would clip."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _turned(field: str, image: Image.Image) -> bool:
    """Whether the camera was held upright."""
    try:
        # A PNG's own `getexif` would decode all of it to look for one at the end, where `_open` leaves none.
        return Image.Image.getexif(image).get(ORIENTATION) in TURNED
    except Exception as error:
        raise _damaged(field, error) from None


def _damaged(field: str, error: Exception) -> InvalidRequest:
    return invalid(field, f"a damaged file ({error})", ", ".join(FORMATS))


def _open(field: str, data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is checked in its place
            return Image.open(io.BytesIO(notes_first(data)), formats=FORMATS)
    except Exception as error:
        raise invalid(field, f"no readable picture ({type(error).__name__})", ", ".join(FORMATS)) from None
