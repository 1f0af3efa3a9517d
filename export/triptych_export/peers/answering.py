"""The peers' end of the line: a question in, seconds out. Imports nothing of Triptych: it may run in another environment."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

# Draws one batch: requests that differ in prompt and seed only; PIL images.
Draw = Callable[[Sequence[Mapping[str, Any]]], Sequence[Any]]
WARM_UP = {"prompt": "a red apple", "seed": 0, "num_inference_steps": 2, "guidance_scale": 4.0}


def threads() -> int:
    """Processors that this process may use: as many threads as ONNX Runtime has in Triptych."""
    return len(os.sched_getaffinity(0))


def answer(draw: Draw, packages: Sequence[str]) -> None:
    """Warm up, then answer questions until there are no more; `packages` are those whose versions matter."""
    channel, sys.stdout = sys.stdout, sys.stderr  # libraries print what they like
    draw([WARM_UP])
    _say(channel, {"ready": {package: metadata.version(package) for package in packages}})
    for line in sys.stdin:
        try:
            question = json.loads(line)
            reply: dict[str, Any] = reply_to(draw, question)
        except Exception as error:  # the asker wants to know, whatever it is
            reply = {"error": f"{type(error).__name__}: {error}"}
        _say(channel, reply)


def reply_to(draw: Draw, question: Mapping[str, Any]) -> dict[str, Any]:
    """A picture where one is asked for, else the seconds of many."""
    if "picture" in question:
        (image,), file = draw([question["picture"]]), io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        return {"picture": base64.b64encode(file.getvalue()).decode()}
    return {"seconds": seconds(draw, question["requests"], question["batch"])}


def seconds(draw: Draw, requests: Sequence[Mapping[str, Any]], batch: int) -> float:
    """Seconds for all requests as PNG files in memory, a call for each `batch` of them."""
    began = time.monotonic()
    for first in range(0, len(requests), batch):
        for image in draw(requests[first : first + batch]):
            image.save(io.BytesIO(), "PNG", compress_level=1)
    return time.monotonic() - began


def _say(channel: Any, words: Mapping[str, Any]) -> None:
    channel.write(json.dumps(words) + "\n")
    channel.flush()
