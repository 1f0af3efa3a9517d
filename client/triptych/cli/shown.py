"""What a terminal is shown: nothing of a file or a server that it could take for a command or for a line of ours."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from typing import Any

from triptych_contract.parameters import is_control


def safe(text: object) -> str:
    """Write text in one line without control characters; those are escaped as Python does."""
    return "".join(_escaped(c) if is_control(c) or c in "\r\n\u2028\u2029" else c for c in str(text))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def say(*lines: object) -> None:
    """Write lines to stdout, at once."""
    sys.stdout.write("".join(f"{safe(line)}\n" for line in lines))
    sys.stdout.flush()


def say_json(facts: Mapping[str, Any]) -> None:
    """Write one JSON object as a line to stdout, at once."""
    say(json.dumps(facts).replace("\x7f", "\\u007f"))  # the one control character that JSON leaves as it is


def note(line: object) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{safe(line)}\n")


def complain(error: object) -> None:
    """Write an error to stderr, each of its lines as one."""
    for line in str(error).split("\n"):
        note(f"error: {line}")


def any_locale() -> None:
    """Have stdout escape what its encoding cannot write, as stderr does: a name must not cost the work behind it."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
