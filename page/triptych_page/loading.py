"""Gradio's import and building: silent, and a third of the time."""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any


def load_gradio(folder: Path) -> None:
    """Import Gradio: no word to anybody, and what is already in `folder` is served from there, not from a copy.

    It must not have been imported before, or has its settings already.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    _when_used("pandas")
    with without_collection(), without_stubs():
        import gradio  # noqa: F401


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Stop the search for garbage while what is made stays: it would go through all of it again and again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def without_apps() -> Iterator[None]:
    """Keep Gradio from making a web application when a page is closed or gets its queue: mounting makes the one that serves."""
    from gradio.routes import App

    real = App.create_app
    App.create_app = staticmethod(lambda *_, **__: None)
    try:
        yield
    finally:
        App.create_app = staticmethod(real)


class _Later(ModuleType):
    """Stands in for a module until the first thing in it is asked for; a LazyLoader loads at a second import already."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def _when_used(name: str) -> None:
    """Let a module load when it is used: Gradio imports it for tables, and this page has none."""
    sys.modules.setdefault(name, _Later(name))


@contextlib.contextmanager
def without_stubs() -> Iterator[None]:
    """Keep Gradio from making stubs for editors of the components that are defined: it would parse sources for seconds.

    And it would write them beside those sources. It leaves out components that are not in a file, so meanwhile none is.
    """
    real = inspect.getfile

    def getfile(thing: Any) -> str:
        if type(thing).__name__ == "ComponentMeta":
            raise OSError("not for a stub")
        return real(thing)

    inspect.getfile = getfile  # type: ignore[assignment]  # its argument may be anything
    try:
        yield
    finally:
        inspect.getfile = real
