"""`triptych serve`: a Triton on this machine, watched until Ctrl-C or SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.status import Status

from triptych_demo import demo_builds
from triptych_server import Addresses, CannotServe, Event, Server, State
from triptych_server.builds import STORE, local
from triptych_server.layout import TRITON_HOME

WAITING = {
    State.PREPARING: "checking the model",
    State.LOADING: "loading and warming up",
    State.RESTARTING: "starting again",
    State.DRAINING: "finishing the requests in flight (Ctrl-C again to cut them off)",
}


def serve(
    builds: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BUILD]…",
            help="Folders made by `triptych export`, or their URLs, one of each family; default: the demo.",
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", envvar=STORE, help="Keeps builds that were fetched; default: in ~/.cache."),
    ] = None,
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8002,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    logs: Annotated[bool, typer.Option("--logs", help="Show Triton's log on stderr.")] = False,
    cache_mb: Annotated[
        float, typer.Option(min=0, help="Megabytes of finished images to keep for identical requests; 0 for none.")
    ] = 256,
    adapters: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="LoRAs (safetensors) that requests may name; new ones are found at once."),
    ] = None,
    adapters_mb: Annotated[
        float, typer.Option(min=1, help="Megabytes of LoRAs in use to keep among temporary files.")
    ] = 4096,
    reproducible: Annotated[
        bool, typer.Option("--reproducible", help="On GPUs: the same bytes whatever else is drawn; costs throughput.")
    ] = False,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that a stop leaves to requests in flight.")] = 30,
) -> None:
    """Serve models on this machine until Ctrl-C."""
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    told: set[State] = set()

    def tell(event: Event) -> None:
        _tell(console, event)
        if event.state == State.READY and event.state not in told:
            _show_addresses(server.addresses)
        told.add(event.state)

    try:
        server = Server(
            [local(build, store, console.print) for build in builds] if builds else demo_builds(),
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            host=host,
            forward_logs=logs,
            on_event=tell,
            grace_s=grace,
            cache_mb=cache_mb,
            adapters=adapters,
            adapters_mb=adapters_mb,
            reproducible=reproducible,
        )
        code = _attend(server, console)
    except (FileNotFoundError, CannotServe) as error:
        console.print(f"error: {error}", style="red")
        code = 1
    raise typer.Exit(code)


def _attend(server: Server, console: Console) -> int:
    """Stay until the service ends. The handler only takes notes: anything more could deadlock in a signal handler."""
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: signals.append(received))
    server.begin()
    if not os.environ.get(TRITON_HOME) and not server.addresses.loopback:
        console.print(
            f"warning: {server.addresses.host} can be reached from outside, and the Triton of the nvidia-pytriton wheel has "
            "known vulnerabilities. Put a gateway in front.",
            style="yellow",
        )
    with _Progress(console) as progress:
        while not server.wait(0.1):
            progress.show(server.state)
            if signals:
                server.request_stop(0 if len(signals) > 1 else None)
                if server.state == State.PREPARING:
                    server.stop()
                    return 0
    if server.failure:
        raise server.failure
    return 128 + signals[-1] if len(signals) > 1 else 0


def _show_addresses(at: Addresses) -> None:
    sys.stdout.write(
        f"gRPC     {at.grpc}\nHTTP     {at.http}\nmetrics  {at.metrics}\n"
        f'try      triptych generate "a 3d render of a red apple" --url {at.grpc}\n'
    )
    sys.stdout.flush()


def _tell(console: Console, event: Event) -> None:
    """A line an event; the last word of a failed run is said by whoever sees its exit code."""
    if event.state != State.STOPPED or event.text == "stopped":
        console.print(event.text, style="red" if event.state == State.RESTARTING else None)


class _Progress:
    """What is being waited for and for how long, on a terminal only: the events' lines are enough elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._state, self._since = State.NEW, time.monotonic()

    def show(self, state: State) -> None:
        if state != self._state:
            self._state, self._since = state, time.monotonic()
            self.__exit__()
        if state in WAITING and self._console.is_terminal:
            text = f"{WAITING[state]} … {time.monotonic() - self._since:.0f} s"
            self._status = self._status or self._begin(text)
            self._status.update(text)

    def _begin(self, text: str) -> Status:
        status = self._console.status(text)
        status.start()
        return status

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()
        self._status = None
