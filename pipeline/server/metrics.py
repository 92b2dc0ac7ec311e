"""What a Prometheus reads at ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

from pipeline.inference.deployment import Deployment

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts requests, images and batches.

    Args:
        deployment: what answers.
        waiting: gives the number of images in the queue.
    """

    def __init__(self, deployment: Deployment, waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        choice = deployment.choice
        Info("classifier_model", "the file that answers", registry=self._registry).info(
            {
                "name": deployment.name,
                "file": choice.name,
                "backend": choice.backend,
                "precision": choice.precision,
                "verdict": choice.verdict,
            }
        )
        self._requests = Counter(
            "classifier_requests", "requests by route and HTTP status", ("route", "code"), registry=self._registry
        )
        self._seconds = Histogram(
            "classifier_request_seconds",
            "from a request's headers to its answer",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._images = Counter(
            "classifier_images", "image files by what became of them", ("status",), registry=self._registry
        )
        self._batches = Histogram(
            "classifier_batch_images",
            "images that were computed at once",
            buckets=_IMAGES,
            registry=self._registry,
        )
        Gauge("classifier_queue_images", "images that wait", registry=self._registry).set_function(waiting)
        ProcessCollector(registry=self._registry)

    def request(self, route: str, code: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, code).inc()
        self._seconds.labels(route).observe(seconds)

    def image(self, status: str) -> None:
        """Count an image file: "ok", or why it was not decoded."""
        self._images.labels(status).inc()

    def batch(self, images: int) -> None:
        """Count a batch."""
        self._batches.observe(images)

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return generate_latest(self._registry)
