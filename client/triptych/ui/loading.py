"""Gradio's import: silent, and twice as fast."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any


def load_gradio(uploads: Path) -> None:
    """Import Gradio: no word to anybody, and its files in `uploads`, which is made where missing.

    It must not have been imported before, or has its settings already.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    uploads.mkdir(mode=0o700, exist_ok=True)
    _import_without_stubs()


def _import_without_stubs() -> None:
    """Gradio parses each component's source to write a stub for editors beside it: seconds, into site-packages.

    It leaves out components that are not in a file, so for the time of the import none is.
    """
    real = inspect.getfile

    def getfile(thing: Any) -> str:
        if type(thing).__name__ == "ComponentMeta":
            raise OSError("not for a stub")
        return real(thing)

    inspect.getfile = getfile  # type: ignore[assignment]  # its argument may be anything
    try:
        import gradio  # noqa: F401
    finally:
        inspect.getfile = real
