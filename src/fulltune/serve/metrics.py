"""Count and time what a server does, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("fulltune_requests", "Requests by path and status.", ("path", "status"), registry=own)
        self.latency = Histogram(
            "fulltune_request_seconds",
            "Time from a request to the end of its response.",
            ("path",),
            buckets=_SECONDS,
            registry=own,
        )
        self.rows = Counter("fulltune_rows", "Inputs that the model answered.", registry=own)
        self.tokens = Counter(
            "fulltune_tokens", "Tokens that the model read (input) and generated (output).", ("kind",), registry=own
        )
        self.batch = Histogram("fulltune_batch_rows", "Inputs per batch.", buckets=_ROWS, registry=own)
        self.batch_seconds = Histogram(
            "fulltune_batch_seconds", "Time that the model took for a batch.", buckets=_SECONDS, registry=own
        )
        self.queue = Gauge("fulltune_queue_rows", "Inputs that wait for the model.", registry=own)
        self.model = Gauge("fulltune_model", "1 for the version that answers new requests.", ("version",), registry=own)
        self.changes = Counter(
            "fulltune_model_changes", "Changes of the version, by result: done or failed.", ("result",), registry=own
        )

    def serving(self, version: str) -> None:
        """Note which version answers new requests."""
        self.model.clear()
        self.model.labels(version).set(1)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)
