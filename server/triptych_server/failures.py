"""Living processes that Triton took for dead.

Triton's Python backend expects a sign of life each second from a process that owes it an answer. A machine that stands
still for longer (a migration, a starved virtual CPU) costs the process that trust, and Triton 24.10 goes on: requests
that are never answered, answers to other questions, a segmentation fault in the end. Only a restart mends it.
"""

from __future__ import annotations

import re

_FAILED = re.compile(r'^nv_inference_request_failure\{model="([^"]+)",reason="BACKEND",version="1"\} (\d+)', re.M)
_ANSWERED = re.compile(r'^triptych_errors_total\{stage="([^"]+)"\} (\d+)', re.M)


def taken_for_dead(metrics: str) -> list[str]:
    """The models of ours with more failures than they answered themselves, from the text of Triton's metrics page.

    A model counts its error before it sends it, so that a page read in between shows fewer failures, never more.
    """
    answered = dict(_ANSWERED.findall(metrics))
    return [model for model, failed in _FAILED.findall(metrics) if int(failed) > int(answered.get(model, failed))]
