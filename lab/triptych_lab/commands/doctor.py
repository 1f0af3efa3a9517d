"""`triptych doctor`: check what works on this machine, and say what to do about the rest."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from triptych_lab.doctor import Finding

STYLES = {"OK": "green", "note": "yellow", "problem": "bold red"}


def doctor(
    builds: Annotated[Path, typer.Option("-o", "--output", help="Where builds are to go.")] = Path("build"),
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="The port to be served on.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="The port to be served on.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535, help="The port to be served on.")] = 8002,
    host: Annotated[str, typer.Option(help="The address to be served on.")] = "127.0.0.1",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check this machine; exit 1 where something is broken that the CPU path needs."""
    from rich.console import Console

    from triptych_lab.doctor import Level, Ports, examine

    console = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True, quiet=as_json)
    findings = _shown(examine(builds, Ports(host, http_port, grpc_port, metrics_port)), console)
    broken = [finding.check for finding in findings if finding.level == Level.PROBLEM]
    if as_json:
        sys.stdout.write(json.dumps({"ok": not broken, "checks": [finding.to_json() for finding in findings]}) + "\n")
    console.print(f"To be mended before `triptych serve`: {', '.join(broken)}." if broken else "The CPU path works.")
    raise typer.Exit(1 if broken else 0)


def _shown(findings: Iterable[Finding], console: Console) -> list[Finding]:
    """Print each finding at once; return all."""
    seen = []
    for finding in findings:
        seen.append(finding)
        _show(finding, console)
    return seen


def _show(finding: Finding, console: Console) -> None:
    from rich.text import Text

    level = finding.level.value
    console.print(Text.assemble((f"{level:8}", STYLES[level]), f"{finding.check:16}", finding.found))
    if finding.advice:
        console.print(f"{'':8}{'':16}→ {finding.advice}")
