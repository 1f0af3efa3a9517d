"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Url = Annotated[str, typer.Option(envvar="TRIPTYCH_URL", help="The server's gRPC address.")]
LOCAL = "localhost:8001"
