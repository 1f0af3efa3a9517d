"""A request with few steps: what is drawn while a hand still moves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .forms import Form

# Steps that are taken from noise, or from the picture to start from.
STEPS = 4


def sketch(form: Form, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Give the same request with few steps, as a JPEG; None where it has as few itself, or cannot have them."""
    values = form.read(request).values
    few = math.ceil(STEPS / (values.get("strength") or 1))
    steps = {name: few for name, value in values.items() if name.endswith("num_inference_steps") and value > few}
    sketched = {**request, **steps, "output_format": "jpeg"}
    return sketched if steps and not form.check(sketched)[1] else None
