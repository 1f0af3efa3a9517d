"""The page's own style and script: local files, no others."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "assets"


def style() -> str:
    """Read the page's CSS."""
    return (FOLDER / "page.css").read_text("utf-8")


def head() -> str:
    """Read what goes into the page's head: its script."""
    return f"<script>{(FOLDER / 'page.js').read_text('utf-8')}</script>"
