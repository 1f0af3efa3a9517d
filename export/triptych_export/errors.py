"""Why an export stops."""

from __future__ import annotations


class ExportError(Exception):
    """The export cannot go on; the message names the folder's part, what was found and what is supported."""


def on_one_line(error: BaseException, most: int = 300) -> str:
    """Another library's error for a message of ours: its words in one line, not longer than `most`."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= most else f"{words[:most]}…"
