"""Pictures to send along with requests."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw


def picture(mode="RGB", size=(75, 50)):
    image = Image.effect_noise(size, 60).convert("RGB")
    ImageDraw.Draw(image).ellipse((5, 5, 40, 40), fill=(200, 60, 20))
    return image.convert(mode)


def file(image, form="PNG", **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()
