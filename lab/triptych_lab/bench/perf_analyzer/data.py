"""Write perf_analyzer's input data: a JSON list of requests, each an object of tensors by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from triptych.request import check
from triptych_lab.workload import Arrival

Tensors = Mapping[str, NDArray[Any]]


def write(path: Path, requests: Iterable[Mapping[str, Any]]) -> Path:
    """Write a file of requests and return its path."""
    path.write_text(json.dumps({"data": list(requests)}, ensure_ascii=False), "utf-8")
    return path


def scalars(model: str, parameters: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Make a request to an ensemble: by input, a list of its values."""
    sendable = check(model, parameters)
    return {name: [_text(item) for item in _items(value)] for name, value in sendable.items()}


def schedule(model: str, arrivals: Iterable[Arrival]) -> list[dict[str, Any]]:
    """Make the requests of a workload for `--fixed-schedule`, each with its time in milliseconds since the start."""
    arrivals = list(arrivals)
    times = accumulate(arrival.interval_s for arrival in arrivals)
    return [
        {"timestamp": [round(at * 1000)], **scalars(model, arrival.parameters)}
        for at, arrival in zip(times, arrivals, strict=True)
    ]


def tensors(arrays: Tensors, *, batched: bool) -> list[dict[str, Any]]:
    """Make requests of a stage's recorded inputs: if Triton batches the stage, one of each row, without the batch dimension."""
    if not batched:
        return [{name: _tensor(array) for name, array in arrays.items()}]
    rows = min(len(array) for array in arrays.values())
    return [{name: _tensor(array[row]) for name, array in arrays.items()} for row in range(rows)]


def _tensor(array: NDArray[Any]) -> dict[str, Any]:
    return {"content": [_text(item) for item in array.reshape(-1).tolist()], "shape": list(array.shape)}


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, tuple) else (value,)


def _text(item: Any) -> Any:
    """Decode bytes, which JSON cannot hold; all our text tensors are UTF-8."""
    return item.decode() if isinstance(item, bytes) else item
