"""A list of names with a weight each, picked and weighed on the page: adapters, and controls with the steps they work in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from triptych_contract.control import Controls
from triptych_contract.listed import Listed

from .assets import read

OF_A_FOLDER = "There are none yet; files that are put into the server's folder appear here."

TEMPLATE = """<fieldset class="tp-weights"><legend>${label}</legend><ul></ul>
<select aria-label="Add to ${label}"></select><p></p></fieldset>"""


def weights(kind: Listed, label: str, **options: Any) -> Any:
    """Make the component. Its value is `[{"name": …, "scale": …}, …]`, of controls with `start` and `end` as well.

    One of our own: Gradio's list of several forgets what is picked whenever it is told which names there are.
    """
    shape: dict[str, Any] = {"html_template": TEMPLATE, "js_on_load": read("weights.js"), "apply_default_css": False}
    return gr.HTML([], label=label, **shape, **offered(kind, {}), **options)


def offered(kind: Listed, names: Mapping[str, str]) -> dict[str, Any]:
    """Give the properties by which the component offers these names; the values are words on each."""
    (low, high), spans = kind.scales, isinstance(kind, Controls)
    words = "" if spans else OF_A_FOLDER
    return {"low": low, "high": high, "most": kind.most, "spans": spans, "none": words, "names": dict(names)}


def picked(kind: Listed, name: str, value: Any) -> list[dict[str, Any]]:
    """Give the component's value for a setting's; controls in the order of the pictures that they follow."""
    found = kind.typed(name, value or ())
    if isinstance(kind, Controls):
        found = tuple(sorted(found, key=lambda one: one.image))
    shown = ("name", "scale", "start", "end") if isinstance(kind, Controls) else ("name", "scale")
    return [{what: getattr(one, what) for what in shown} for one in found]
