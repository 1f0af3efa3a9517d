"""Why an export stops."""

from __future__ import annotations


class ExportError(Exception):
    """The export cannot go on; the message names the folder's part, what was found and what is supported."""
