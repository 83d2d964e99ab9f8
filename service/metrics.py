"""Figures for Prometheus: of this process's requests, and of the database, which every API process reports alike."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from contract.job_state import JobStatus
from service.jobs.fleet import Fleet

# A second series for each one, which nothing here asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
"""Upper bounds in seconds: a small read takes some milliseconds, the check of a large upload minutes."""
SLOW_SECONDS = 1.0
REST = 20
"""Times the duration of a slow count of the database, until the next one: with millions of jobs one takes seconds of a
processor, and every process is asked every few seconds."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"
"""The route of a request that no route answers, so that paths of strangers make no series."""


def method_and_route(scope: Scope) -> tuple[str, str]:
    """Return a request's method, and its route's template, ``/jobs/{job_id}``: few values, whatever strangers send."""
    route = getattr(scope.get("route"), "path", UNMATCHED)
    return scope["method"] if scope["method"] in METHODS else "other", route


class RequestMetrics:
    """The requests of one API process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counting = threading.Lock()
        self._counted, self._count_again_at = b"", 0.0
        labels = ("method", "route")
        self._num_answers = Counter(
            "trd_requests", "Requests that were answered.", (*labels, "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "trd_request_seconds",
            "Time from a request to the first byte of its answer.",
            labels,
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._series: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}

    def answered(self, scope: Scope, status: int | None, seconds: float) -> None:
        """Count one request."""
        key = (*method_and_route(scope), str(status or 499))
        if key not in self._series:  # to look a series up costs more than to count in it
            self._series[key] = self._num_answers.labels(*key), self._seconds.labels(*key[:2])
        num_answers, series_seconds = self._series[key]
        num_answers.inc()
        series_seconds.observe(seconds)

    def text(self, fleet: Fleet, num_streams: int) -> bytes:
        """Return all figures in Prometheus's text format; those of the database may be old if counting takes long."""
        with self._counting:
            began = time.monotonic()
            if began >= self._count_again_at:
                current = CollectorRegistry()
                current.register(_Current(fleet, num_streams))
                self._counted, ended = generate_latest(current), time.monotonic()
                self._count_again_at = ended + REST * (ended - began) if ended - began > SLOW_SECONDS else ended
            return generate_latest(self.registry) + self._counted


class _Current(Collector):
    """What is so at the time of the call."""

    def __init__(self, fleet: Fleet, num_streams: int) -> None:
        self._fleet = fleet
        self._num_streams = num_streams

    def describe(self) -> list[Metric]:
        """Return nothing: otherwise registering would collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read the database."""
        counts = self._fleet.num_by_status()
        jobs = GaugeMetricFamily("trd_jobs", "Jobs by status.", labels=["status"])
        for status in JobStatus:
            jobs.add_metric([status], counts.get(status, 0))
        yield jobs
        waiting = GaugeMetricFamily("trd_queue_waiting", "Jobs that wait.", labels=["queue"])
        running = GaugeMetricFamily("trd_queue_running", "Jobs that workers hold.", labels=["queue"])
        oldest = GaugeMetricFamily("trd_queue_oldest_seconds", "Age of the job that waits longest.", labels=["queue"])
        for queue in self._fleet.queues():
            waiting.add_metric([queue.name], queue.num_waiting)
            running.add_metric([queue.name], queue.num_running)
            age = (datetime.now(UTC) - queue.oldest_at).total_seconds() if queue.oldest_at is not None else 0.0
            oldest.add_metric([queue.name], max(age, 0.0))
        yield from (waiting, running, oldest)
        workers = GaugeMetricFamily("trd_workers", "Live workers that serve a queue.", labels=["queue"])
        for name, number in self._fleet.num_workers_by_queue().items():
            workers.add_metric([name], number)
        yield workers
        yield GaugeMetricFamily("trd_streams", "Open event streams of this process.", value=self._num_streams)
