"""What the client hands out: events while a picture is made, and the picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class GeneratedImage:
    """A finished picture: `data` is the file's bytes, `timings` are milliseconds on the server.

    `cached` tells that the server answered with a file that it had made for the same request before.
    """

    data: bytes = field(repr=False)
    format: str
    seed: int
    receipt: Mapping[str, Any] = field(repr=False)
    timings: Mapping[str, float]
    request_id: str
    cached: bool = False

    @property
    def image(self) -> Image:
        """The picture as a PIL image."""
        return _image(self.data)

    def save(self, path: str | Path) -> Path:
        """Write the file, never over another.

        Args:
            path: a file's path, or a folder (made where missing), where the name is `image_YYYYmmdd_HHMMSS.<format>`.

        Raises:
            FileExistsError: a file's path was given and exists.
        """
        from .files import save_exclusively, save_in

        path = Path(path)
        if path.suffix and not path.is_dir():
            save_exclusively(path, self.data)
            return path
        return save_in(path, self.format, self.data)


@dataclass(frozen=True)
class Queued:
    """Waiting for its first step, with `position` requests ahead."""

    position: int


@dataclass(frozen=True)
class InProgress:
    """`step` of `total` model calls are done, over all stages; `remaining_s` is the server's estimate.

    `stage` is the model of the next call: `unet`, `refiner_unet`, `prior` (Stage C) or `decoder` (Stage B). `preview` is
    a small PNG of what there is so far, from the first step on, where previews were asked for.
    """

    step: int
    total: int
    remaining_s: float | None = None
    stage: str | None = None
    preview: bytes | None = field(default=None, repr=False)

    @property
    def preview_image(self) -> Image | None:
        """The preview as a PIL image."""
        return _image(self.preview) if self.preview else None


@dataclass(frozen=True)
class Completed:
    """The last event."""

    image: GeneratedImage


Event = Queued | InProgress | Completed


def _image(data: bytes) -> Image:
    from PIL import Image

    return Image.open(io.BytesIO(data))
