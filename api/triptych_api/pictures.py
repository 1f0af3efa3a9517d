"""Pictures in bodies: files of forms, data URLs and base64; and masks that say it the other way round."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from triptych.errors import invalid
from triptych.pictures import FORMATS, header

if TYPE_CHECKING:
    from PIL.Image import Image

LEGAL = "a PNG, JPEG or WebP file: in a form as it is, in JSON as a data URL or base64"
DATA = re.compile(r"data:image/[\w.+-]{1,40};base64,")
# A mask is decoded here; RGBA of so many pixels takes 64 MiB.
MAX_MASK_PIXELS = 16 * 2**20


def picture(name: str, value: Any) -> bytes:
    """Give the bytes of a picture's file. A text is never a path or an address: nothing is opened or fetched.

    Args:
        value: bytes, a data URL, base64, or OpenAI's `{"image_url": …}`.

    Raises:
        InvalidRequest: it is none of these.
    """
    if isinstance(value, Mapping):
        if set(value) != {"image_url"}:
            given = f"an object with {', '.join(map(str, value))[:60] or 'nothing'}"
            raise invalid(name, given, "an object with image_url, a data URL")
        value = value["image_url"]
        value = value["url"] if isinstance(value, Mapping) and "url" in value else value
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise invalid(name, f"a {type(value).__name__}", LEGAL)
    text = value[found.end() :] if (found := DATA.match(value)) else value
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(name, "a text that is neither a data URL nor base64", LEGAL) from None


def openai_mask(data: bytes) -> bytes:
    """Give a mask of OpenAI's, which edits where alpha is 0, as ours: white there, black elsewhere; a PNG.

    Raises:
        InvalidRequest: no picture, too large, without transparency, or damaged.
    """
    mask = _decoded(data)
    if not mask.has_transparency_data:
        raise invalid("mask", "a picture without transparency", "one that is transparent where it is to be painted")
    return _png(mask.convert("RGBA").getchannel("A").point([255] + [0] * 255))


def inverted(data: bytes) -> bytes:
    """Give a mask with black for white; a PNG. What is transparent counts as black before.

    Raises:
        InvalidRequest: no picture, too large, or damaged.
    """
    from PIL import Image, ImageOps

    mask = _decoded(data)
    if mask.has_transparency_data:
        black = Image.new("RGBA", mask.size, (0, 0, 0, 255))
        mask = Image.alpha_composite(black, mask.convert("RGBA"))
    return _png(ImageOps.invert(mask.convert("L")))


def _decoded(data: bytes) -> Image:
    from PIL import Image

    found = header("mask", data)
    if found.height * found.width > MAX_MASK_PIXELS:
        given = f"{found.width}×{found.height} pixels"
        raise invalid("mask", given, f"at most {MAX_MASK_PIXELS} pixels")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
    except Exception as error:  # Pillow raises whatever it stumbles over
        raise invalid("mask", f"a damaged file ({type(error).__name__})", LEGAL) from None
    return image


def _png(image: Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes, format: str) -> str:
    """Write a file as a URL that holds it."""
    return f"data:image/{format};base64,{base64.b64encode(data).decode()}"
