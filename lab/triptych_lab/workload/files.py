"""Workload files: JSON lines, one request each, with the seconds since the request before.

    {"interval_s": 0.412, "prompt": "a 3d render of a fox", "seed": 3, "num_inference_steps": 20}

The other keys are the inputs of the ensemble, checked as the client checks them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.errors import InvalidRequest, invalid
from triptych.request import check
from triptych_contract.families import DEFAULT, family_of

INTERVAL = "interval_s"
MAX_INTERVAL_S = 1e6


@dataclass(frozen=True)
class Arrival:
    """One request: the seconds since the request before it, and its inputs by the ensemble's names."""

    interval_s: float
    parameters: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the object that stands for it in a file."""
        return {INTERVAL: self.interval_s, **self.parameters}


def save(path: Path, arrivals: Iterable[Arrival]) -> int:
    """Write a workload; return the number of requests."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for arrival in arrivals:
            file.write(json.dumps(arrival.to_json(), ensure_ascii=False) + "\n")
            count += 1
    return count


def load(path: Path, model: str = DEFAULT.name) -> Iterator[Arrival]:
    """Read a workload for the ensemble `model`, line by line, since a file may not fit into memory. Blank lines are skipped.

    Raises:
        InvalidRequest: a line is wrong, and names file, line and field; or the file holds no request.
    """
    count = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _read(line, model, f"{path}:{number}")
                count += 1
    if not count:
        raise invalid("workload", f"{path}, an empty file", "a JSON object a line")


def _read(line: bytes, model: str, where: str) -> Arrival:
    try:
        return _arrival(_object(line), model)
    except InvalidRequest as error:
        raise InvalidRequest(error.problems, f"workload: {where}: {error}") from None


def _object(line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line.decode("utf-8"))
    except (RecursionError, ValueError) as error:
        raise invalid("line", f"no JSON ({error})", "a JSON object in UTF-8") from None
    if not isinstance(document, dict):
        raise invalid("line", f"a {type(document).__name__}", "a JSON object")
    return document


def _arrival(document: dict[str, Any], model: str) -> Arrival:
    interval = document.pop(INTERVAL, None)
    number = isinstance(interval, (int, float)) and not isinstance(interval, bool)
    if not number or not 0 <= interval <= MAX_INTERVAL_S:
        raise invalid(INTERVAL, json.dumps(interval), f"seconds since the request before, 0 to {MAX_INTERVAL_S:.0f}")
    if not isinstance(document.get("prompt"), str):
        raise invalid("prompt", json.dumps(document.get("prompt")), "a text")
    check(model, document)
    return Arrival(
        float(interval),
        {name: document[name] for name in family_of(model).parameters if document.get(name) is not None},
    )
