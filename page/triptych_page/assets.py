"""The page's own style and scripts: local files, no others."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "assets"


def read(name: str) -> str:
    """Read a file of the page."""
    return (FOLDER / name).read_text("utf-8")


def head() -> str:
    """Give what goes into the page's head: its scripts."""
    return "".join(f"<script>{read(name)}</script>" for name in ("page.js", "live.js", "mask.js"))
