"""The commands."""

from __future__ import annotations

import typer

from .demo import demo
from .export import export
from .generate import generate
from .replay import replay
from .serve import serve

app = typer.Typer(
    name="triptych",
    help="Text-to-image serving on NVIDIA Triton.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (generate, replay, serve, demo, export):
    app.command()(command)
