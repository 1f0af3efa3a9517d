"""How many servers there should be: by the seconds of work that wait for each."""

from __future__ import annotations

import math
from typing import Any

# What a server publishes for this.
SECONDS = "estimate_seconds"


def wanted(now: int, seconds: float, asked: float, target_s: float, least: int, most: int) -> int:
    """Give the servers that the work is for: up at once, down by a quarter, for a short queue may be these servers' own merit.

    Args:
        now: servers that there are or that start.
        seconds: of work that wait for all servers.
        asked: requests that wait for a first server, which is wanted for as long as it takes to start.
        target_s: seconds of work that may wait for each.
        least, most: servers.
    """
    count = max(math.ceil(seconds / target_s), min(1, math.ceil(asked)), now - max(1, now // 4))
    return max(least, min(most, count))


class ByWork:
    """Ray Serve's autoscaling policy; the pause before one goes is Ray Serve's `downscale_delay_s`.

    Args:
        target_s: seconds of work that may wait for each server.
    """

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Answer the autoscaler: how many, and nothing to remember."""
        newest = (series[-1].value for series in (context.raw_metrics or {}).get(SECONDS, {}).values() if series)
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        now, asked = context.target_num_replicas, float(context.total_num_requests or 0)
        return wanted(now, sum(newest), asked, self._target_s, least, most), {}
