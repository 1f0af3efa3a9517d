"""Models that a server of the tests serves: those that ship as demos, changed as a test likes."""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

from triptych_demo import demo_build


@cache
def _card(family: str) -> Any:
    return json.loads((demo_build(family) / "manifest.json").read_text("utf-8"))["model"]


def card(family: str, **changes: Any) -> dict[str, Any]:
    """The demo model's card as JSON."""
    return {**copy.deepcopy(_card(family)), **changes}


def described(family: str, **changes: Any) -> dict[str, Any]:
    """What a server says of that model."""
    return {"family": family, "model": card(family, **changes)}
