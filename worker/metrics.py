"""A worker's figures for Prometheus, served on ``TRD_METRICS_PORT``. They count from the start of the process."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from worker.settings import WorkerSettings

LEASE_RENEWALS = Counter(
    "trd_lease_renewals", "Renewals of leases: renewed, failed (no database) or lost (another attempt).", ["result"]
)
ATTEMPTS = Counter(
    "trd_attempts",
    "Ended attempts: finished, stopped, failed or lost, and superseded by another. The leading worker counts those of "
    "workers that died.",
    ["outcome", "error_code"],
)
STEP_SECONDS = Histogram(
    "trd_step_seconds", "Optimizer steps.", buckets=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
)
TOKENS_PER_SECOND = Gauge("trd_tokens_per_second", "Tokens a second of the newest optimizer step.")
SAMPLER_GAP = Gauge("trd_sampler_gap_nats", "Newest gap between the log-probabilities of sampler and trainer.")
CHECKPOINT_SECONDS = Histogram(
    "trd_checkpoint_seconds", "Storing a checkpoint.", buckets=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
)
CHECKPOINT_BYTES = Counter("trd_checkpoint_bytes", "Bytes of the checkpoints that were stored.")


def serve(settings: WorkerSettings) -> None:
    """Serve the figures in a thread until the process ends; do nothing without a port. Raises ValueError."""
    if settings.metrics_port is None:
        return
    try:
        start_http_server(settings.metrics_port, addr=settings.metrics_host)
    except OSError as error:
        given = f"TRD_METRICS_PORT = {settings.metrics_port}, TRD_METRICS_HOST = {settings.metrics_host}"
        raise ValueError(f"{given}: {error.strerror}; name a free port and an address of this machine") from None


def observe_step(values: Mapping[str, float | None]) -> None:
    """Take what concerns a worker from the metrics of a step."""
    if (seconds := values.get("step_seconds")) is not None:
        STEP_SECONDS.observe(seconds)
    if (rate := values.get("tokens_per_second")) is not None:
        TOKENS_PER_SECOND.set(rate)
    if (gap := values.get("sampler_gap")) is not None:
        SAMPLER_GAP.set(gap)
