"""The front's own Prometheus metrics; none of them knows a key."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCIES = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """What is counted. Routes are the paths as declared, models those that the server has: strangers add no labels."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Histogram(
            "triptych_api_request_seconds",
            "Seconds from a request's head to the end of its answer",
            ("route", "model", "outcome"),
            buckets=LATENCIES,
            registry=registry,
        )
        self.images = Counter("triptych_api_images", "Pictures that were drawn", ("model",), registry=registry)
        self.queued = Histogram(
            "triptych_api_queue_seconds",
            "Seconds that a drawn picture waited for its first step",
            buckets=LATENCIES,
            registry=registry,
        )
        self.open = Gauge("triptych_api_open_requests", "Requests that are being answered", registry=registry)
        self.jobs = Counter("triptych_api_jobs", "Jobs that ended", ("outcome",), registry=registry)
        self.webhooks = Counter("triptych_api_webhooks", "Webhooks that were sent", ("outcome",), registry=registry)

    @property
    def page(self) -> bytes:
        """The metrics as Prometheus reads them."""
        return generate_latest(self._registry)
