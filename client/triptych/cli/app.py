"""The commands."""

from __future__ import annotations

import typer

from .bench import bench
from .demo import demo
from .doctor import doctor
from .export import export
from .fetch import fetch
from .generate import generate
from .prune import prune
from .replay import replay
from .samplers import samplers
from .serve import serve
from .simulate import simulate
from .ui import ui
from .verify import verify
from .workload import workload

app = typer.Typer(
    name="triptych",
    help="Text-to-image serving on NVIDIA Triton.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    generate,
    replay,
    samplers,
    verify,
    serve,
    demo,
    export,
    prune,
    fetch,
    doctor,
    bench,
    workload,
    simulate,
    ui,
):
    app.command()(command)
