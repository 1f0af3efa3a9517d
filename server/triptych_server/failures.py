"""Living processes that owe an answer and give none, or whose answers Triton has lost.

Triton's Python backend expects a sign of life each second from a process that runs a batch. A machine that stands
still for longer (a migration, a starved virtual CPU) costs the process that trust, and Triton 24.10 goes on: it refuses the
batch, takes the process's late answer for that to the next one, and ends in a segmentation fault. Only a restart mends it.

Requests may fail in many ways that say nothing of this, so no failure is counted: each process notes what it did
(`triptych_serving.record`), which no caller can falsify, and the batches that Triton has had answers to are compared with that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from triptych_serving.record import Counts

# Looks in which a process may not beat: ten seconds of ours, however long the machine itself stands still.
PATIENCE_LOOKS = 100
_RECEIVED = re.compile(r'^nv_inference_exec_count\{model="([^"]+)",version="1"\} (\d+)', re.M)


class Beats:
    """Notices processes that stand still. Looks are counted, not seconds: who was stopped with them learns nothing of them."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._silent: dict[str, int] = {}

    def stalled(self, counts: Mapping[str, Counts]) -> list[str]:
        """The models whose process has not beaten for `PATIENCE_LOOKS` looks in a row; this is one."""
        for model, now in counts.items():
            self._silent[model] = self._silent.get(model, 0) + 1 if now.beats == self._last.get(model) else 0
            self._last[model] = now.beats
        return [model for model, looks in self._silent.items() if looks >= PATIENCE_LOOKS]


class Answers:
    """Notices answers that Triton did not take: it has counted fewer batches than the process had run two looks before."""

    def __init__(self) -> None:
        self._earlier: list[Mapping[str, Counts]] = [{}, {}]

    def lost(self, counts: Mapping[str, Counts], metrics: str) -> list[str]:
        """The models that Triton has lost answers of, from what was noted before `metrics` was read from its page."""
        before, *_ = self._earlier
        self._earlier = [*self._earlier[1:], counts]
        received = {model: int(batches) for model, batches in _RECEIVED.findall(metrics)}
        return [model for model, batches in received.items() if model in before and batches < before[model].executed]
