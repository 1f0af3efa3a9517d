"""`triptych api`: the HTTP front, and its keys."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from triptych.cli.options import LOCAL

_access = partial(typer.Option, rich_help_panel="Access")
_server = partial(typer.Option, rich_help_panel="The Triptych server")
_limit = partial(typer.Option, rich_help_panel="Limits")
_jobs = partial(typer.Option, rich_help_panel="Jobs")

Pem = Path | None

api = typer.Typer(invoke_without_command=True)
keys_app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")
api.add_typer(keys_app, name="keys")


@api.callback()
def serve(
    context: typer.Context,
    url: Annotated[str, _server(envvar="TRIPTYCH_URL", help="The server's gRPC address.")] = LOCAL,
    tls: Annotated[bool, _server("--tls", help="Encrypt the way to the server.")] = False,
    root_certificates: Annotated[Pem, _server(metavar="PEM", help="Whom to trust there; asks for --tls.")] = None,
    private_key: Annotated[Pem, _server(metavar="PEM", help="This client's key; asks for --tls.")] = None,
    certificate_chain: Annotated[Pem, _server(metavar="PEM", help="Its certificate; asks for --tls.")] = None,
    host: Annotated[str, _access(help="Address to listen on; outside loopback only with --keys.")] = "127.0.0.1",
    port: Annotated[int, _access(min=0, max=65535, help="0 takes a free one.")] = 8080,
    keys: Annotated[
        Path | None, _access(metavar="FILE", envvar="TRIPTYCH_API_KEYS", help="Who may ask; default: anybody here.")
    ] = None,
    config: Annotated[Path | None, _server(metavar="TOML", help="A file of presets.")] = None,
    allow_host: Annotated[
        list[str] | None, _access(metavar="NAME", help="Another name of this front, without --keys (repeat).")
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None, _access(metavar="ADDRESS", help="A proxy whose X-Forwarded headers are believed (repeat).")
    ] = None,
    origin: Annotated[
        list[str] | None, _access(metavar="ORIGIN", help="A site whose pages may ask, or * for any (repeat).")
    ] = None,
    certificate: Annotated[Pem, _access(metavar="PEM", help="Speak TLS; with --key.")] = None,
    key: Annotated[Pem, _access(metavar="PEM", help="The certificate's key.")] = None,
    timeout: Annotated[float, _limit(min=1, help="Seconds that a picture may take in all.")] = 600,
    max_body_mb: Annotated[int, _limit(min=1, max=1024, help="Largest body.")] = 64,
    body_seconds: Annotated[float, _limit(min=1, help="Seconds in which a body has to come.")] = 60,
    under_way: Annotated[int, _limit(min=1, help="Pictures at once, without --keys.")] = 256,
    a_minute: Annotated[float, _limit(min=1, help="Pictures begun in a minute, without --keys.")] = 6000,
    grace: Annotated[int, _limit(min=0, help="Seconds that requests under way have at a stop.")] = 30,
    jobs: Annotated[
        str | None,
        _jobs(
            metavar="FILE|URL",
            envvar="TRIPTYCH_API_JOBS",
            help="Keeps jobs: a file, or postgresql://… for several fronts; default: they go with this process.",
        ),
    ] = None,
    kept_hours: Annotated[float, _jobs(min=0.01, help="Hours that a job is kept after its end.")] = 24,
    kept_mb: Annotated[int, _jobs(min=1, help="Most that results take; the oldest go first.")] = 1024,
    waiting: Annotated[int, _jobs(min=1, help="Jobs that may be unended.")] = 1000,
    at_once: Annotated[int, _jobs(min=1, help="Jobs that are drawn at a time.")] = 64,
    private_webhooks: Annotated[
        bool, _jobs("--private-webhooks", help="Webhooks may go to private addresses, and without TLS.")
    ] = False,
) -> None:
    """Serve OpenAI's and A1111's HTTP until Ctrl-C; prints its address."""
    if context.invoked_subcommand:
        return
    from triptych_api.app import Options
    from triptych_api.app import serve as run
    from triptych_api.jobs import Bounds

    client = {
        "url": url,
        "tls": tls,
        "root_certificates": _path(root_certificates),
        "private_key": _path(private_key),
        "certificate_chain": _path(certificate_chain),
    }
    options = Options(
        client=client,
        host=host,
        port=port,
        keys=keys,
        config=config,
        allow_hosts=tuple(allow_host or ()),
        trusted_proxies=tuple(trusted_proxy or ()),
        origins=tuple(origin or ()),
        certificate=certificate,
        key=key,
        timeout_s=timeout,
        max_body_mb=max_body_mb,
        body_s=body_seconds,
        under_way=under_way,
        a_minute=a_minute,
        grace_s=grace,
        jobs=jobs,
        bounds=Bounds(kept_hours * 3600, kept_mb * 2**20, waiting, at_once),
        private_webhooks=private_webhooks,
    )
    run(options, _show)


File = Annotated[
    Path,
    typer.Option("--keys", metavar="FILE", envvar="TRIPTYCH_API_KEYS", help="The file of keys.", show_default=False),
]


@keys_app.command()
def add(
    name: Annotated[str, typer.Argument(help="Whose it is, for people.")],
    keys: File,
    tenant: Annotated[str, typer.Option(help="Keys of one tenant see each other's jobs; default: its own.")] = "",
    under_way: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 64,
    a_minute: Annotated[float, typer.Option(min=1, help="Pictures begun in a minute.")] = 600,
    priority: Annotated[int, typer.Option(help="Jobs of a higher one start first.")] = 0,
) -> None:
    """Make a key and print it; the file has its hash only."""
    from triptych_api.keys import Keys

    _show(Keys(keys).add(name, tenant=tenant, under_way=under_way, a_minute=a_minute, priority=priority))


@keys_app.command(name="list")
def list_keys(keys: File) -> None:
    """Print id, name, tenant, limits, priority and when it was made or revoked, a line each."""
    from triptych_api.keys import Keys

    for one in Keys(keys).all():
        day = time.strftime("%Y-%m-%d", time.gmtime(one.created if one.revoked is None else one.revoked))
        state = "made" if one.revoked is None else "revoked"
        limits = f"{one.under_way} at once  {one.a_minute:g} a minute  priority {one.priority}"
        _show(f"{one.id}  {one.name}  tenant {one.tenant}  {limits}  {state} {day}")


@keys_app.command()
def revoke(id: Annotated[str, typer.Argument(help="As `list` prints it.")], keys: File) -> None:
    """Let a key open nothing any more; a front that runs notices at once."""
    from triptych_api.keys import Keys

    Keys(keys).revoke(id)


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
