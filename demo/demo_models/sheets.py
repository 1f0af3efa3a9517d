"""Contact sheets: pictures side by side in one PNG, with a caption under each if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from demo_models.data import Pixels

CAPTION_HEIGHT = 22


def to_pixels(images: Tensor) -> Pixels:
    """Images in 0–1, [B, 3, H, W], as uint8 [B, H, W, 3]."""
    scaled = images.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.asarray(scaled.permute(0, 2, 3, 1).cpu().numpy())


def sheet(pictures: Sequence[Pixels], path: Path, *, columns: int, captions: Sequence[str] | None = None) -> None:
    """Draw pictures (uint8 [H, W, 3], one size) in rows; a caption is cut at two short lines."""
    height, width = pictures[0].shape[:2]
    cell = height + (CAPTION_HEIGHT if captions else 0)
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * width, rows * cell), "white")
    draw = ImageDraw.Draw(canvas)
    for index, picture in enumerate(pictures):
        x, y = index % columns * width, index // columns * cell
        canvas.paste(Image.fromarray(picture), (x, y))
        if captions:
            text, per_line = captions[index], width // 5
            lines = [text[i : i + per_line] for i in range(0, min(len(text), 2 * per_line), per_line)]
            draw.text((x + 2, y + height), "\n".join(lines), fill="black", font_size=9, spacing=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)
