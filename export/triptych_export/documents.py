"""The JSON files of a folder, read in one place so that every fault of one is named."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from .errors import ExportError

# A tokenizer's vocabulary is some MB, any config some kB.
MAX_BYTES = 64_000_000


def read_json(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ExportError: it is missing, empty, too large, or not JSON in UTF-8; names its folder, itself and the place.
    """
    where = named(file)
    try:
        size = file.stat().st_size
        if not size or size > MAX_BYTES:
            raise ExportError(f"{where}: {size} bytes; supported: JSON of 1 to {MAX_BYTES} bytes")
        content = file.read_bytes()
    except OSError as error:
        raise ExportError(f"{where}: {error.strerror}; supported: a JSON file") from None
    if b"\0" in content:
        raise ExportError(f"{where}: holds NUL bytes (a copy that broke off, or UTF-16); supported: JSON in UTF-8")
    if content.startswith(codecs.BOM_UTF8):
        raise ExportError(f"{where}: begins with a byte order mark; supported: JSON in UTF-8 without one")
    try:
        return json.loads(content.decode("utf-8"))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ExportError(f"{where}: {error.msg} ({place}); supported: JSON, which has no trailing commas") from None
    except UnicodeDecodeError as error:
        raise ExportError(f"{where}: {error.reason} at byte {error.start}; supported: JSON in UTF-8") from None
    except (RecursionError, ValueError) as error:
        fault = "a number of thousands of digits" if isinstance(error, ValueError) else "nested too deeply"
        raise ExportError(f"{where}: {fault}; supported: JSON of a config") from None


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ExportError: as `read_json`, or it holds something else.
    """
    document = read_json(file)
    if not isinstance(document, dict):
        raise ExportError(f"{named(file)}: a JSON {type(document).__name__}; supported: an object")
    return document


def named(file: Path) -> str:
    """A file of a part as messages name it, "PART/FILE"; the index by its name alone."""
    return file.name if file.name == "model_index.json" else f"{file.parent.name}/{file.name}"
