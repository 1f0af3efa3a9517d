"""Pixels to files that carry their receipt."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

QUALITY = 95
# zlib's quickest: a third of the time of its default, 6, for files that are a fifth larger.
PNG_LEVEL = 1
# TIFF's tags and types.
EXIF_IFD, USER_COMMENT, IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E
ASCII, LONG, UNDEFINED = 2, 4, 7
MOST_JPEG_EXIF = 65_533  # bytes of a JPEG's segment; a WebP's chunk takes what there is
LEFT_OUT = "does not fit into a JPEG; the response, PNG and WebP hold it"


def encode(pixels: NDArray[np.uint8], output_format: str, made_by: dict[str, Any], a1111: str) -> bytes:
    """An image file; `pixels` is (height, width, 3), `a1111` the receipt in A1111's words. Same arguments, same bytes.

    PNG carries the text chunks `parameters` (A1111's grammar) and `triptych` (our receipt, JSON); JPEG and WebP carry them as
    EXIF UserComment, where other tools look for it, and ImageDescription. Of the longest prompts a JPEG holds less, and says so.
    """
    image, file = Image.fromarray(pixels), io.BytesIO()
    if output_format == "png":
        image.save(file, "PNG", compress_level=PNG_LEVEL, pnginfo=_png_text(made_by, a1111))
    elif output_format == "jpeg":
        image.save(file, "JPEG", quality=QUALITY, subsampling=0, exif=_jpeg_exif(made_by, a1111))
    else:
        image.save(file, "WEBP", quality=QUALITY, exif=_exif(json.dumps(made_by), a1111))
    return file.getvalue()


def _png_text(made_by: dict[str, Any], a1111: str) -> PngInfo:
    info = PngInfo()
    info.add_text("parameters", a1111)
    info.add_text("triptych", json.dumps(made_by))
    return info


def _jpeg_exif(made_by: dict[str, Any], a1111: str) -> bytes:
    """As much as fits; what no encoder saw of the prompts is the first to go, for the prompts say it as well."""
    *_, last = a1111.rsplit("\n", 1)
    short = f"(the prompt {LEFT_OUT})\n{last}"
    without_cut = {name: value for name, value in made_by.items() if name != "cut"}
    whole, less = json.dumps(made_by), json.dumps({**without_cut, "left_out": f"cut: {LEFT_OUT}"})
    nothing = json.dumps(f"the receipt {LEFT_OUT}")
    choices = ((whole, a1111), (less, a1111), (less, short), (nothing, a1111), (nothing, short))
    made = (_exif(description, comment) for description, comment in choices)
    return next(exif for exif in made if len(exif) <= MOST_JPEG_EXIF)


def _exif(description: str, comment: str) -> bytes:
    """Two directories of one text each. By hand: Pillow writes a UserComment as BYTE, which readers of EXIF refuse."""
    described, commented = description.encode("ascii") + b"\0", b"UNICODE\0" + comment.encode("utf-16-be")
    padding = b"\0" * (len(described) % 2)  # a directory begins at a word
    head = struct.Struct(
        ">2sHIHHHIIHHIII"
    )  # byte order, 42, where the first directory is; its 2 entries, and no next one
    directory = struct.Struct(">HHHIII")
    inner = head.size + len(described + padding)
    return b"".join(
        (
            b"Exif\0\0",
            head.pack(
                *(b"MM", 42, 8, 2),
                *(IMAGE_DESCRIPTION, ASCII, len(described), head.size),
                *(EXIF_IFD, LONG, 1, inner),
                0,
            ),
            described + padding,
            directory.pack(1, USER_COMMENT, UNDEFINED, len(commented), inner + directory.size, 0),
            commented,
        )
    )
