"""What a request paints on: its picture, extended, under its mask, blurred; the part that is painted, and what is laid over it.

Numbers are those of diffusers' `VaeImageProcessor`: `blur`, `get_crop_region`, the modes "fill" and "crop", `apply_overlay`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from triptych_contract.errors import invalid
from triptych_contract.sdxl.settings import SdxlSettings

from .denoiser import Floats
from .pictures import check_file, decoded, fitted, pixels, white

Box = tuple[int, int, int, int]  # left, top, right, bottom


class Canvas(NamedTuple):
    """A picture, and a mask of 8 bits that is white where it is painted anew; with a region of the same size as it."""

    picture: Image.Image
    mask: Image.Image | None
    region: Box | None  # that is painted, where that is not all

    @classmethod
    def of(cls, read: Callable[[str], bytes], settings: SdxlSettings) -> Canvas:
        """Put together what settings ask for; `read` gives the files `init_image` and `mask`, b"" for none.

        Raises:
            InvalidRequest: a file is damaged or another than settings speak of, or nothing of the mask is white where only its
                surroundings are to be painted.
        """
        files = {name: read(name) for name in ("init_image", "mask")}
        for name, data in files.items():
            check_file(name, data, getattr(settings, name))
        picture, mask = decoded("init_image", files["init_image"]), None
        if settings.mask is not None:
            mask = decoded("mask", files["mask"], on_black=True)
        if settings.extend is not None:
            mask = _extended(
                mask or Image.new("L", picture.size), settings.extend, mode="constant", constant_values=255
            )
            picture = _extended(picture, settings.extend, mode="edge")
        if mask and settings.mask_blur:
            mask = mask.filter(ImageFilter.GaussianBlur(settings.mask_blur))
        if mask is None or settings.padding_mask_crop is None:
            return cls(picture, mask, None)
        return cls(picture, mask, _region(mask, settings.height, settings.width, settings.padding_mask_crop))

    def seen(self, height: int, width: int) -> tuple[Floats, Floats | None]:
        """Give what is painted at this size: (1, 3, height, width), −1 … 1, and (1, 1, height, width), 1 where that is anew."""
        sample = pixels(self._at(self.picture, height, width))
        return sample, None if self.mask is None else white(self._at(self.mask, height, width))

    def finished(self, painted: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Lay the picture, where the mask is black, over its region as it was `painted`, (height, width, 3); all of it, whole."""
        if self.mask is None or self.region is None:
            return painted
        left, top, right, bottom = self.region
        whole, kept = self.picture.convert("RGB"), ImageOps.invert(self.mask.convert("L").crop(self.region))
        over = Image.new("RGBa", kept.size)
        over.paste(whole.crop(self.region).convert("RGBA").convert("RGBa"), mask=kept)
        under = _cropped(Image.fromarray(painted), right - left, bottom - top).convert("RGBA")
        under.alpha_composite(over.convert("RGBA"))
        whole.paste(under.convert("RGB"), (left, top))
        return np.asarray(whole)

    def _at(self, image: Image.Image, height: int, width: int) -> Image.Image:
        return fitted(image, height, width) if self.region is None else _filled(image.crop(self.region), height, width)


def _extended(image: Image.Image, extend: Box, **padding: Any) -> Image.Image:
    (left, top, right, bottom), array = extend, np.asarray(image)
    return Image.fromarray(np.pad(array, ((top, bottom), (left, right), (0, 0))[: array.ndim], **padding))


def _region(mask: Image.Image, height: int, width: int, padding: int) -> Box:
    """The part of a mask that has all that is not black, `padding` pixels around it, and about the shape of height × width."""
    found = mask.convert("L").getbbox()
    if found is None:
        raise invalid("mask", "nothing white", "with padding_mask_crop some of it white")
    left, top = (max(0, edge - padding) for edge in found[:2])
    right, bottom = (min(side, edge + padding) for edge, side in zip(found[2:], mask.size, strict=True))
    if (right - left) / (bottom - top) > width / height:
        top, bottom = _widened(top, bottom, (right - left) / (width / height), mask.height)
    else:
        left, right = _widened(left, right, (bottom - top) * (width / height), mask.width)
    return left, top, right, bottom


def _widened(begin: int, end: int, wanted: float, whole: int) -> tuple[int, int]:
    """A stretch of about `wanted` pixels around one of a side, as far as the side goes."""
    more = int(wanted - (end - begin))
    begin, end = begin - more // 2, end + more - more // 2
    over = max(0, end - whole)
    begin, end = begin - over, end - over
    under = max(0, -begin)
    return begin + under, min(end + under, whole)


def _filled(image: Image.Image, height: int, width: int) -> Image.Image:
    """The whole image at its own shape in the middle of height × width, its outermost pixels drawn out to the edges."""
    wider = width / height < image.width / image.height
    inside = (width, image.height * width // image.width) if wider else (image.width * height // image.height, height)
    size = max(1, inside[0]), max(1, inside[1])
    inner = fitted(image, size[1], size[0])
    made, (left, top) = Image.new(image.mode, (width, height)), _middle(size, (width, height))
    made.paste(inner, (left, top))
    if wider and top:
        for edge, at in ((0, 0), (inner.height, top + inner.height)):
            made.paste(inner.resize((width, top), box=(0, edge, width, edge)), (0, at))
    elif not wider and left:
        for edge, at in ((0, 0), (inner.width, left + inner.width)):
            made.paste(inner.resize((left, height), box=(edge, 0, edge, height)), (at, 0))
    return made


def _cropped(image: Image.Image, width: int, height: int) -> Image.Image:
    """As much of an image at its own shape as width × height shows, the middle of it."""
    wider = width / height <= image.width / image.height
    size = (image.width * height // image.height, height) if wider else (width, image.height * width // image.width)
    made = Image.new("RGB", (width, height))
    made.paste(fitted(image, size[1], size[0]), _middle(size, (width, height)))
    return made


def _middle(inner: tuple[int, int], outer: tuple[int, int]) -> tuple[int, int]:
    """Where one size begins in the middle of another."""
    return outer[0] // 2 - inner[0] // 2, outer[1] // 2 - inner[1] // 2
