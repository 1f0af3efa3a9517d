"""perf_analyzer's input data: a JSON list of requests, each a tensor by name."""

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
    """Write requests as perf_analyzer reads them."""
    path.write_text(json.dumps({"data": list(requests)}, ensure_ascii=False), "utf-8")
    return path


def scalars(model: str, parameters: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A request of an ensemble; scalars and pairs by the input's name."""
    sendable = check(model, parameters)
    return {name: [_text(item) for item in _items(value)] for name, value in sendable.items()}


def schedule(model: str, arrivals: Iterable[Arrival]) -> list[dict[str, Any]]:
    """A workload for `--fixed-schedule`: each request with its time in milliseconds since the start."""
    arrivals = list(arrivals)
    times = accumulate(arrival.interval_s for arrival in arrivals)
    return [
        {"timestamp": [round(at * 1000)], **scalars(model, arrival.parameters)}
        for at, arrival in zip(times, arrivals, strict=True)
    ]


def tensors(arrays: Tensors, *, batched: bool) -> list[dict[str, Any]]:
    """A stage's recorded inputs; where Triton batches it, each row is a request, without the batch's dimension."""
    if not batched:
        return [{name: _tensor(array) for name, array in arrays.items()}]
    rows = min(len(array) for array in arrays.values())
    return [{name: _tensor(array[row]) for name, array in arrays.items()} for row in range(rows)]


def _tensor(array: NDArray[Any]) -> dict[str, Any]:
    return {"content": [_text(item) for item in array.reshape(-1).tolist()], "shape": list(array.shape)}


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, tuple) else (value,)


def _text(item: Any) -> Any:
    """JSON holds no bytes; every text tensor of ours is UTF-8."""
    return item.decode() if isinstance(item, bytes) else item
