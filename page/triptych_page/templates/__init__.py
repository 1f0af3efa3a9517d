"""The page's pieces of HTML, made by Jinja; everything that somebody wrote is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import escape as html_escape

_made = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
# What Gradio's own templates would take for code.
_CODE = str.maketrans({"{": "&#123;", "$": "&#36;", "`": "&#96;"})


def fragment(name: str, **values: Any) -> str:
    """Make a piece of HTML by the macro of this name in `fragments.html`."""
    return str(getattr(_made.get_template("fragments.html").module, name)(**values)).translate(_CODE)


def escape(text: str) -> str:
    """Write text as HTML that none of Gradio's templates takes for code."""
    return str(html_escape(text)).translate(_CODE)
