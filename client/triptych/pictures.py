"""Pictures that a request brings along, as the bytes of files. What is in them, the server says."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from typing import TYPE_CHECKING, Any

from triptych_contract import parameters
from triptych_contract.errors import InvalidRequest, invalid

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = bytes | str | os.PathLike[str] | Image

# One message of gRPC holds no more; also what keeps an endless file from being read.
MAX_BYTES = 2**31 - 2**20
PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
FORMATS = ("PNG", "JPEG", "WEBP")
# EXIF's tag for how the camera was held, and its values for upright.
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)
UNREADABLE = "no readable picture"
LEGAL = "a PNG, JPEG or WebP file (its path or its bytes) or a PIL image"


def file_bytes(field: str, given: Any) -> bytes:
    """The file that `given` is: encoded bytes as they are, a path's content, a PIL image as PNG.

    Raises:
        InvalidRequest: nothing of that kind, a file that cannot be read, or more than can be sent.
    """
    data = _content(field, given)
    if len(data) > MAX_BYTES:
        raise invalid(field, f"more than {MAX_BYTES} bytes", f"at most {MAX_BYTES} bytes")
    return data


def files_bytes(field: str, given: Any) -> tuple[bytes, ...]:
    """The files that a list of pictures is, or one picture alone.

    Raises:
        InvalidRequest: as `file_bytes`, or all together are more than can be sent.
    """
    files = tuple(file_bytes(field, one) for one in (given if isinstance(given, (list, tuple)) else [given]))
    if sum(map(len, files)) > MAX_BYTES:
        raise invalid(field, f"more than {MAX_BYTES} bytes", f"at most {MAX_BYTES} bytes")
    return files


def header(field: str, data: bytes) -> parameters.Picture:
    """Read what settings hold of a picture off its file; nothing is decoded.

    Raises:
        InvalidRequest: it is no picture.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # how large it may be, the server says
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        looked_for = image.format != "PNG" or "exif" in image.info  # Pillow decodes all of a PNG to look at its end
        if looked_for and image.getexif().get(ORIENTATION) in TURNED:
            width, height = height, width
    except Exception as error:  # Pillow raises whatever it stumbles over
        raise invalid(field, f"{UNREADABLE} ({type(error).__name__})", LEGAL) from None
    return parameters.Picture(hashlib.sha256(data).hexdigest(), height, width)


def _content(field: str, given: Any) -> bytes:
    from PIL import Image

    if isinstance(given, (bytes, bytearray, memoryview)):
        return bytes(given)
    if isinstance(given, (str, os.PathLike)):
        return _read(field, given)
    if isinstance(given, Image.Image):
        return _png(field, given)
    raise invalid(field, f"a {type(given).__name__}", LEGAL)


def _read(field: str, path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise _unreadable(field, os.fspath(path), error) from None


def _unreadable(field: str, path: str, error: OSError | ValueError) -> InvalidRequest:
    why = error.strerror if isinstance(error, OSError) else str(error)
    return invalid(field, f"{path!r} ({why})", LEGAL)


def _png(field: str, image: Image) -> bytes:
    file = io.BytesIO()
    try:
        # Without options: `image.save("start.png")` then makes the very file that the receipt names.
        (image if image.mode in PNG_MODES else image.convert("RGB")).save(file, "PNG")
    except (OSError, ValueError) as error:
        raise invalid(field, f"a PIL image that PNG cannot hold ({error})", LEGAL) from None
    return file.getvalue()
