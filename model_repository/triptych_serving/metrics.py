"""The loop's own metrics: counted here, shown by the verb `stats`, published to Prometheus by way of Triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Kind = Literal["counter", "gauge"]

# name → (kind, help). Prometheus shows them as triptych_<name>.
METRICS: dict[str, tuple[Kind, str]] = {
    "waiting": ("gauge", "Requests admitted that have made no step yet"),
    "running": ("gauge", "Requests that have made a step"),
    "estimate_seconds": ("gauge", "Estimated seconds of work in the queue"),
    "batch_rows": ("gauge", "Rows in the newest batch"),
    "batches_total": ("counter", "Batches run by the denoiser"),
    "rows_total": ("counter", "Rows run by the denoiser; divided by batches, the mean batch"),
    "step_seconds_total": ("counter", "Seconds spent in steps; divided by batches, the mean step"),
    "queue_seconds_total": ("counter", "Seconds that requests waited for their first step"),
    "completed_total": ("counter", "Requests whose latents were finished"),
    "failed_total": ("counter", "Requests that ended by a defect"),
    "cancelled_total": ("counter", "Requests cancelled by a verb or a gone client"),
    "expired_total": ("counter", "Requests ended by their deadline"),
    "cached_total": ("counter", "Requests answered from the cache of finished images"),
    "resumed_total": ("counter", "Requests sent again whose latents were finished already"),
    "rejected_total": ("counter", "Requests refused because the queue was full"),
}


class Metrics:
    """Hold the current value of each metric, and publish what changed.

    `flush` calls `publish(name, value)` for each metric that changed since the last flush, with a gauge's value or a counter's
    increment. Published at most once a second: every publish is an IPC round trip, and there are several changes a step.
    """

    def __init__(self, publish: Callable[[str, float], None] = lambda _name, _value: None) -> None:
        self.values = dict.fromkeys(METRICS, 0.0)
        self._publish = publish
        self._changed: dict[str, float] = {}

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        if self.values[name] != value:
            self.values[name] = self._changed[name] = value

    def add(self, name: str, value: float = 1.0) -> None:
        """Add to a counter."""
        self.values[name] += value
        self._changed[name] = self._changed.get(name, 0.0) + value

    @property
    def unpublished(self) -> bool:
        """Whether anything has changed since the last `flush`."""
        return bool(self._changed)

    def flush(self) -> None:
        """Publish what has changed since the last flush."""
        changed, self._changed = self._changed, {}
        for name, value in changed.items():
            self._publish(name, value)
