"""`triptych demo`: from nothing to a picture, with a server of its own."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from triptych import Client
from triptych.demo import demo_build
from triptych.server import Server, ServerError


def demo(
    prompt: Annotated[str, typer.Argument(help="What to draw.")] = "a 3d render of a red apple",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the picture.")] = Path("out"),
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same picture.")] = 7,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for the picture.")] = 120,
) -> None:
    """Start the demo model, draw one picture, stop."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, _leave)
    try:
        path = _draw(console, prompt, output, seed, timeout)
    except (FileNotFoundError, ServerError) as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(1) from None
    sys.stdout.write(f"{path}\n")


def _draw(console: Console, prompt: str, output: Path, seed: int, timeout: float) -> Path:
    begun = time.monotonic()
    server = Server(demo_build(), http_port=0, grpc_port=0, metrics_port=0)
    try:
        with console.status("starting Triton with the demo model …"):
            server.start()
        started = time.monotonic()
        with console.status(f"drawing {prompt!r} …"), Client(server.addresses.grpc, timeout=timeout) as client:
            image = client.generate(prompt, seed=seed)
        drawn = time.monotonic()
        path = image.save(output)
    finally:
        server.kill()  # its only request is answered: nothing to drain
    ended = time.monotonic()
    console.print(f"start {started - begun:.1f} s, generate {drawn - started:.1f} s, total {ended - begun:.1f} s")
    return path


def _leave(*_: object) -> NoReturn:
    """SIGTERM unwinds as an exit does, so that the server is stopped."""
    sys.exit(143)
