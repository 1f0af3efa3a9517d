"""Living processes that owe an answer and give none, or whose answers Triton has lost.

Triton's Python backend expects a sign of life each second from a process that runs a batch. A machine that stands
still for longer (a migration, a starved virtual CPU) costs the process that trust, and Triton 24.10 goes on: it refuses the
batch, takes the process's late answer for that to the next one, and ends in a segmentation fault. Only a new process mends it.

Requests may fail in many ways that say nothing of this, so no failure is counted: each process notes what it did
(`triptych_serving.record`), which no caller can falsify, and the batches that Triton has had answers to are compared with that.

What stands still is told early and ended late. Looks are counted, not seconds: however long the machine itself stands still, who
was stopped with it learns nothing of that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from triptych_serving.record import Counts

LOOK_S = 0.1
# Seconds of looks without a sign of life from a process, or an answer from Triton, until that is told, and until it is ended.
TOLD_S, ENDED_S = 2.0, 10.0
# Triton may take a process for dead after so long; one that moved again within the looks of so many seconds mixes up answers.
GIVEN_UP_S, RECENT_S = 1.0, 3.0
# A piece of work that is late is ended after so many times what is allowed for it.
ENDED_TIMES = 5
_RECEIVED = re.compile(r'^nv_inference_exec_count\{model="([^"]+)",version="1"\} (\d+)', re.M)

# Of CUDA's errors after which a process must end (`triptych_serving.tensorrt.cuda.STICKY`), as TensorRT words them in Triton's
# log. Our own processes end by themselves; Triton would go on and fail every picture.
_LOST_GPU = re.compile(
    rb"E\d{4} \S+ \d+ logging\.cc:\d+\] .*Cuda Runtime \((device-side assert triggered|Invalid access of peer GPU memory over "
    rb"nvlink or a hardware error|context is destroyed|uncorrectable (?:ECC error encountered|NVLink error detected during the "
    rb"execution)|an async error has occured in external entity outside of CUDA|hardware stack error|an illegal (?:memory access|"
    rb"instruction) was encountered|operation not supported on global/shared address space|invalid program counter|unspecified "
    rb"launch failure|the launch timed out and was terminated|misaligned address|the MPS client has been terminated by the "
    rb"server|tensor memory not completely freed|unknown error)\)"
)


def lost_gpu(line: bytes) -> str:
    """CUDA's words, if a line of Triton's log says that Triton's own process has lost the GPU for good."""
    found = _LOST_GPU.match(line)
    return found[1].decode() if found else ""


class Stalls:
    """Notices what stands still: a process that does not beat, or a piece of work that does not end."""

    def __init__(self) -> None:
        self._signs: dict[str, tuple[int, int]] = {}  # by model: the last sign of life, and the looks since
        self._works: dict[str, tuple[int, int]] = {}
        self._told: dict[str, str] = {}
        self._looks = 0
        self._stood_still: dict[str, int] = {}  # by model: the last look at which it did

    def stood_still(self, model: str) -> bool:
        """Whether this process has stood still lately for so long that Triton may have given it up."""
        return model in self._stood_still and (self._looks - self._stood_still[model]) * LOOK_S <= RECENT_S

    def begin_anew(self, model: str) -> None:
        """Forget a model's process: the next one's signs begin where its own did."""
        for known in (self._signs, self._works, self._stood_still):
            known.pop(model, None)

    def look(self, counts: Mapping[str, Counts]) -> tuple[list[str], dict[str, str]]:
        """Look once more: what is to be told, and the models whose process is to be ended, each with the reason."""
        ended, late = {}, {}
        self._looks += 1
        for model, now in counts.items():
            silent, busy = _since(self._signs, model, now.beats), _since(self._works, model, now.work)
            allowed = now.allowed_ms / 1000
            if silent >= GIVEN_UP_S:
                self._stood_still[model] = self._looks
            if silent >= TOLD_S:
                late[model] = f"the process of model {model!r} stands still; it is ended after {ENDED_S:g} s"
            elif now.work and busy >= allowed:
                limit = ENDED_TIMES * allowed
                late[model] = (
                    f"model {model!r} takes over {allowed:.0f} s for one call; it is ended after {limit:.0f} s"
                )
            if silent >= ENDED_S:
                ended[model] = f"the process of model {model!r} stands still"
            elif now.work and busy >= ENDED_TIMES * allowed:
                ended[model] = f"model {model!r} takes over {ENDED_TIMES * allowed:.0f} s for one call"
        told, self._told = self._told, late
        return [words for model, words in late.items() if told.get(model) != words], ended


def _since(marks: dict[str, tuple[int, int]], model: str, mark: int) -> float:
    """Seconds of looks in a row at which the mark was the same; this is one."""
    last, looks = marks.get(model, (mark, -1))
    looks = looks + 1 if mark == last else 0
    marks[model] = mark, looks
    return looks * LOOK_S


class Answers:
    """Notices answers that Triton did not take: it has counted fewer batches than the process had run two looks before."""

    def __init__(self) -> None:
        self._earlier: list[dict[str, Counts]] = [{}, {}]
        self._before: dict[str, int] = {}  # batches that Triton has had of a model's earlier processes

    def lost(self, counts: Mapping[str, Counts], metrics: str) -> list[str]:
        """The models that Triton has lost answers of, from what was noted before `metrics` was read from its page."""
        before, *_ = self._earlier
        self._earlier = [*self._earlier[1:], dict(counts)]
        received = _received(metrics)
        return [
            model
            for model, batches in received.items()
            if model in before and batches - self._before.get(model, 0) < before[model].executed
        ]

    def begin_anew(self, model: str, metrics: str) -> None:
        """Forget a model's process, by a page that was read when it had ended."""
        self._before[model] = _received(metrics).get(model, 0)
        for looked_at in self._earlier:
            looked_at.pop(model, None)


def _received(metrics: str) -> dict[str, int]:
    return {model: int(batches) for model, batches in _RECEIVED.findall(metrics)}
