"""`triptych cluster`: many servers on one machine or on a Ray cluster, and what there is of them."""

from __future__ import annotations

import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

_servers = partial(typer.Option, rich_help_panel="Servers")
_doors = partial(typer.Option, rich_help_panel="Addresses")
_scale = partial(typer.Option, rich_help_panel="Scaling")

Ray = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", envvar="RAY_ADDRESS", help="A Ray cluster, as auto; default: this machine alone."),
]

# Columns of the table of servers: it is never cut, whatever the terminal's width.
WIDE = 200

cluster = typer.Typer(invoke_without_command=True)


@cluster.callback()
def up(
    context: typer.Context,
    ray: Ray = None,
    build: Annotated[
        list[str] | None,
        _servers(
            metavar="FOLDER|URL",
            help="A folder of `triptych export` on every machine, or its URL (repeat); default: the demo.",
        ),
    ] = None,
    store: Annotated[
        Path | None,
        _servers(metavar="FOLDER", envvar="TRIPTYCH_STORE", help="Keeps fetched builds; default: in ~/.cache."),
    ] = None,
    adapters: Annotated[Path | None, _servers(metavar="FOLDER", help="LoRAs that requests may name.")] = None,
    adapters_mb: Annotated[float, _servers(min=1, help="Megabytes of LoRAs in use that each keeps.")] = 4096,
    cache_mb: Annotated[float, _servers(min=0, help="Megabytes of finished images that each keeps.")] = 256,
    reproducible: Annotated[bool, _servers("--reproducible", help="As `triptych serve` has it.")] = False,
    cpus: Annotated[float, _servers(min=0.01, help="Each server's share of a machine without GPUs.")] = 1,
    grace: Annotated[float, _servers(min=0, help="Seconds that a server's stop leaves to requests in flight.")] = 30,
    servers: Annotated[int | None, _scale(min=0, help="How many, or the fewest; default: one for each GPU.")] = None,
    most: Annotated[int | None, _scale(min=1, help="The most: there are as many as the work asks for.")] = None,
    target_seconds: Annotated[float, _scale(min=0.1, help="Seconds of work that may wait for each.")] = 20,
    pause: Annotated[float, _scale(min=0, help="Seconds of less work before one goes.")] = 60,
    host: Annotated[str, _doors(help="Address that the doors listen on.")] = "127.0.0.1",
    grpc_port: Annotated[int, _doors(min=0, max=65535, help="Triton's gRPC; 0 takes a free one.")] = 8001,
    metrics_port: Annotated[int, _doors(min=0, max=65535, help="All servers' metrics; 0 takes a free one.")] = 8002,
    doors: Annotated[int, _doors(min=1, help="How many, one a machine.")] = 1,
    http_port: Annotated[
        int | None, _doors(min=1, max=65535, help="The HTTP front as well, on this port of every machine.")
    ] = None,
    keys: Annotated[
        Path | None, _doors(metavar="FILE", help="Who may ask over HTTP; as `triptych api` has it.")
    ] = None,
    jobs: Annotated[
        str | None,
        _doors(metavar="URL", envvar="TRIPTYCH_API_JOBS", help="postgresql://…: the HTTP jobs of all machines."),
    ] = None,
    fronts: Annotated[int, _doors(min=1, help="HTTP fronts, wherever there is room.")] = 1,
) -> None:
    """Serve on all GPUs of this machine until Ctrl-C, or deploy to a Ray cluster."""
    if context.invoked_subcommand:
        return
    from triptych_api.app import Options as Front
    from triptych_cluster import app
    from triptych_cluster.deployments import Serving

    front = None if http_port is None else Front(host=host, port=http_port, keys=_whole(keys), jobs=jobs)
    least = servers if servers is not None else 1 if most else None
    serving = Serving(
        builds=tuple(one if "://" in one else str(Path(one).resolve()) for one in build or ()),
        store=str(store.resolve()) if store else None,
        adapters=str(adapters.resolve()) if adapters else None,
        adapters_mb=adapters_mb,
        cache_mb=cache_mb,
        reproducible=reproducible,
        grace_s=grace,
    )
    options = app.Options(
        serving=serving,
        address=ray,
        host=host,
        port=grpc_port,
        metrics_port=metrics_port,
        front=front,
        doors=doors,
        fronts=fronts,
        servers=None if least is None else (least, most or least),
        target_s=target_seconds,
        pause_s=pause,
        cpus=cpus,
    )
    app.start(options)
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # which Ray has taken for itself, to end at once
        signal.signal(number, lambda *_: stopped.set())
    for door in app.status().doors.values():
        sys.stdout.write(f"gRPC     {door['address']}\nmetrics  {door['metrics']}\n")
    if front:
        sys.stdout.write(f"HTTP     http://{host}:{http_port}\n")
    sys.stdout.flush()
    if ray is None:
        stopped.wait()
        app.stop()


@cluster.command()
def status(ray: Ray = "auto") -> None:
    """Print every server with its work, every door and every front."""
    from triptych_cluster import app

    app.connect(ray)
    found = app.status()
    table = Table(box=None, pad_edge=False)
    for head in ("server", "node", "GPU", "jobs", "seconds of work", "builds", "metrics"):
        table.add_column(head, justify="right" if head in ("jobs", "seconds of work") else "left", no_wrap=True)
    for name, one in sorted(found.servers.items()):
        gpus = ", ".join(one["gpus"]) or "–"
        table.add_row(
            name, one["node"][:8], gpus, str(one["jobs"]), f"{one['seconds']:.1f}", one["builds"], one["metrics"]
        )
    console = Console(highlight=False, soft_wrap=True, width=WIDE)
    console.print(table)
    for name, one in sorted(found.doors.items()):
        console.print(f"door {name}  node {one['node'][:8]}  gRPC {one['address']}  metrics {one['metrics']}")
    for name, one in sorted(found.fronts.items()):
        console.print(f"front {name}  node {one['node'][:8]}")


@cluster.command()
def leave(
    ray: Ray = "auto",
    within: Annotated[float, typer.Option(min=0, help="Seconds that this may take.")] = 60,
    node: Annotated[str, typer.Option(help="Another machine's, as `status` prints it.")] = "",
) -> None:
    """Have all that runs on this machine moved to others, and wait for it: before the machine is turned off."""
    from triptych_cluster import app

    raise typer.Exit(0 if app.leave(ray or "auto", within, node) else 1)


def _whole(path: Path | None) -> Path | None:
    return path.resolve() if path else None
