"""`triptych demo`: from nothing to a picture of each family, with a server of its own."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from triptych import Client
from triptych.cli.options import model_option
from triptych_demo import demo_build, demo_builds
from triptych_server import CannotServe, Server


def demo(
    prompt: Annotated[str, typer.Argument(help="What to draw.")] = "a flat icon of a penguin",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the pictures.")] = Path("out"),
    model: Annotated[str | None, model_option(help="Only this demo model; default: each that ships.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same picture.")] = 7,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for each picture.")] = 120,
) -> None:
    """Start the demo models, draw one picture with each, stop."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, _leave)
    try:
        builds = [demo_build(model)] if model else demo_builds()
        _draw(console, builds, prompt, output, seed, timeout)
    except (FileNotFoundError, CannotServe) as error:
        console.print(f"error: {error}", style="red")
        raise typer.Exit(1) from None


def _draw(console: Console, builds: Sequence[Path], prompt: str, output: Path, seed: int, timeout: float) -> None:
    """A picture with each build; its path as soon as it is there, then how long everything took."""
    clock = _Clock()
    server = Server(builds, http_port=0, grpc_port=0, metrics_port=0)
    try:
        with console.status("starting Triton with the demo models …"):
            server.start()
        clock.lap("start")
        for ensemble in (build.name for build in builds):
            url = server.addresses.grpc
            with console.status(f"drawing {prompt!r} …"), Client(url, timeout=timeout, model=ensemble) as client:
                image = client.generate(prompt, seed=seed)
            clock.lap(f"generate {ensemble}")
            sys.stdout.write(f"{image.save(output)}\n")
            sys.stdout.flush()
    finally:
        server.kill()  # its only requests are answered: nothing to drain
    console.print(clock)


class _Clock:
    """What took how long, as `start 1.4 s, generate sdxl 1.1 s, total 2.6 s`."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()
        self._laps: list[str] = []

    def lap(self, what: str) -> None:
        now = time.monotonic()
        self._laps.append(f"{what} {now - self._last:.1f} s")
        self._last = now

    def __str__(self) -> str:
        return ", ".join([*self._laps, f"total {time.monotonic() - self._begun:.1f} s"])


def _leave(*_: object) -> NoReturn:
    """SIGTERM unwinds as an exit does, so that the server is stopped."""
    sys.exit(143)
