"""`triptych ui`: the web page."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from triptych.cli.options import LOCAL
from triptych.errors import invalid

_access = partial(typer.Option, rich_help_panel="Access")
_server = partial(typer.Option, rich_help_panel="The Triptych server")
_limit = partial(typer.Option, rich_help_panel="Limits")

Pem = Path | None


def ui(
    url: Annotated[str, _server(envvar="TRIPTYCH_URL", help="The server's gRPC address.")] = LOCAL,
    tls: Annotated[bool, _server("--tls", help="Encrypt the way to the server.")] = False,
    root_certificates: Annotated[Pem, _server(metavar="PEM", help="Whom to trust there; asks for --tls.")] = None,
    private_key: Annotated[Pem, _server(metavar="PEM", help="This client's key; asks for --tls.")] = None,
    certificate_chain: Annotated[Pem, _server(metavar="PEM", help="Its certificate; asks for --tls.")] = None,
    host: Annotated[str, _access(help="Address to listen on; outside loopback only with --users.")] = "127.0.0.1",
    port: Annotated[int, _access(min=0, max=65535, help="0 takes a free one.")] = 7860,
    users: Annotated[Path | None, _access(metavar="FILE", help="Who may log in; default: no login.")] = None,
    add_user: Annotated[
        str | None, _access(metavar="NAME", help="Ask for a password, write it to --users hashed, and end.")
    ] = None,
    root_path: Annotated[str, _access(metavar="PATH", help="Where a proxy has the page, as /triptych.")] = "",
    allow_host: Annotated[
        list[str] | None, _access(metavar="NAME", help="Another name of this page, without --users (repeat).")
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None, _access(metavar="ADDRESS", help="A proxy whose X-Forwarded headers are believed (repeat).")
    ] = None,
    certificate: Annotated[Pem, _access(metavar="PEM", help="Serve the page over TLS; with --key.")] = None,
    key: Annotated[Pem, _access(metavar="PEM", help="The certificate's key.")] = None,
    max_upload_mb: Annotated[int, _limit(min=1, max=32, help="Largest file that may be dropped.")] = 32,
    under_way: Annotated[int, _limit(min=1, help="Pictures that a user may have waiting or running.")] = 64,
    a_minute: Annotated[float, _limit(min=1, help="Pictures that a user may begin in a minute.")] = 120,
) -> None:
    """Serve the web page until Ctrl-C; prints its address."""
    _require_gradio()
    from triptych_page.app import Options, serve

    if add_user is not None:
        _add_user(users, add_user)
        return
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
        root_path=root_path,
        users=users,
        allow_hosts=tuple(allow_host or ()),
        trusted_proxies=tuple(trusted_proxy or ()),
        certificate=certificate,
        key=key,
        max_upload_mb=max_upload_mb,
        under_way=under_way,
        a_minute=a_minute,
    )
    serve(options, _show)


def _require_gradio() -> None:
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        sys.stderr.write("error: the web page needs Gradio: pip install 'triptych[ui]'\n")
        raise typer.Exit(1)


def _add_user(users: Path | None, name: str) -> None:
    from triptych_page.users import add_user

    if users is None:
        raise invalid("--add-user", "without --users", "together with --users FILE")
    password = typer.prompt(f"Password of {name}", hide_input=True, confirmation_prompt=True, err=True)
    add_user(users, name, password)
    sys.stdout.write(f"{users}\n")


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _show(address: str) -> None:
    sys.stdout.write(f"{address}\n")
    sys.stdout.flush()
