"""What Prometheus reads at `/metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from .service import Service

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)


class Metrics:
    """One service's numbers, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "mezzotint_http_requests", "HTTP requests", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "mezzotint_http_seconds",
            "Time to the end of the answer",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.jobs = Counter("mezzotint_jobs", "Jobs that ended, and how", ["api", "state"], registry=registry)
        self.refused = Counter("mezzotint_refused", "Jobs that found the queue full", registry=registry)
        self.pictures = Counter("mezzotint_pictures", "Pictures made", ["model"], registry=registry)
        self.steps = Counter("mezzotint_steps", "Steps of samplers", registry=registry)
        self.waited = Histogram(
            "mezzotint_wait_seconds", "From acceptance to start", buckets=SECONDS, registry=registry
        )
        self.took = Histogram(
            "mezzotint_job_seconds", "From acceptance to the end", ["api"], buckets=SECONDS, registry=registry
        )

    def watch(self, service: Service) -> None:
        """Numbers that are read off the service when they are asked for."""
        for name, text, read in (
            ("mezzotint_waiting", "Pictures that wait", lambda: len(service.queue)),
            ("mezzotint_running", "Pictures being drawn", lambda: service.running),
            ("mezzotint_models", "Models in memory", lambda: len(service.models.loaded)),
            ("mezzotint_forwards", "Forwards of the lane so far", lambda: service.lane.forwards),
            ("mezzotint_calls", "Calls that these forwards answered", lambda: service.lane.answered),
        ):
            Gauge(name, text, registry=self._registry).set_function(read)

    def text(self) -> bytes:
        return generate_latest(self._registry)
