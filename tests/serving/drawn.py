"""Pictures to send along with requests."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw


def picture(mode="RGB", size=(75, 50)):
    # Always the same noise, unlike Pillow's own.
    noise = np.random.default_rng(0).normal(128, 60, size[::-1]).clip(0, 255)
    image = Image.fromarray(noise.astype(np.uint8)).convert("RGB")
    ImageDraw.Draw(image).ellipse((5, 5, 40, 40), fill=(200, 60, 20))
    return image.convert(mode)


def file(image, form="PNG", **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()
