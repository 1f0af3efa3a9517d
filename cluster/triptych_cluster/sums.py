"""Figures of several servers as one: what a stranger who asks a door expects of a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tritonclient.grpc import service_pb2

# Fields that say what is counted.
KEYS = ("name", "version", "batch_size", "type", "id")


def loops(answers: Sequence[bytes]) -> bytes:
    """Add up the loops' `stats`, each a ModelInferResponse."""
    made = service_pb2.ModelInferResponse.FromString(answers[0])
    sums: dict[str, float] = {}
    for answer in answers:
        content = service_pb2.ModelInferResponse.FromString(answer).raw_output_contents[0]
        for name, value in json.loads(content[4:]).items():
            sums[name] = sums.get(name, 0) + value
    text = json.dumps(sums).encode()
    made.raw_output_contents[0] = len(text).to_bytes(4, "little") + text
    return bytes(made.SerializeToString())


def statistics(answers: Sequence[bytes]) -> bytes:
    """Add up Triton's statistics, each a ModelStatisticsResponse: perf_analyzer reads them before and after."""
    total = service_pb2.ModelStatisticsResponse()
    for answer in answers:
        _add(total, service_pb2.ModelStatisticsResponse.FromString(answer))
    return bytes(total.SerializeToString())


def _add(total: Any, more: Any) -> None:
    """Add a message's figures to another's, field by field."""
    for field, value in more.ListFields():
        if hasattr(value, "items"):  # a map
            for key, each in value.items():
                _add(getattr(total, field.name)[key], each)
        elif hasattr(value, "add"):  # a list
            for each in value:
                _add(_same(getattr(total, field.name), each), each)
        elif hasattr(value, "ListFields"):
            _add(getattr(total, field.name), value)
        elif field.name == "last_inference":
            setattr(total, field.name, max(getattr(total, field.name), value))
        elif field.name not in KEYS:
            setattr(total, field.name, getattr(total, field.name) + value)


def _same(known: Any, one: Any) -> Any:
    """Give the message of a list that counts the same thing."""
    key = {field.name: value for field, value in one.ListFields() if field.name in KEYS}
    return next((each for each in known if all(getattr(each, name) == key[name] for name in key)), None) or known.add(
        **key
    )
