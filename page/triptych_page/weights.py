"""A list of names with a weight each, picked and weighed on the page: adapters, and whatever else a request names and weighs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from triptych_contract.adapters import MAX_ADAPTERS, MAX_SCALE, Adapters

from .assets import read

TEMPLATE = """<fieldset class="tp-weights"><legend>${label}</legend><ul></ul>
<select aria-label="Add to ${label}"></select><p></p></fieldset>"""


def weights(label: str, **options: Any) -> Any:
    """Make the component. Its value is `[{"name": …, "scale": …}, …]`.

    One of our own: Gradio's list of several forgets what is picked whenever it is told which names there are.
    """
    shape: dict[str, Any] = {"html_template": TEMPLATE, "js_on_load": read("weights.js"), "apply_default_css": False}
    return gr.HTML([], label=label, **shape, **offered({}), **options)


def offered(names: Mapping[str, str]) -> dict[str, Any]:
    """Give the properties by which the component offers these names; the values are words on each."""
    return {"low": -MAX_SCALE, "high": MAX_SCALE, "most": MAX_ADAPTERS, "names": dict(names)}


def picked(kind: Adapters, name: str, value: Any) -> list[dict[str, Any]]:
    """Give the component's value for a setting's."""
    return [{"name": one.name, "scale": one.scale} for one in kind.typed(name, value or ())]
