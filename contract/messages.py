"""What producer and worker agree on about the broker. A message is a doorbell: it carries a job id and nothing else."""

from __future__ import annotations

from typing import Any

RUN_JOB_TASK = "trd.run_job"
"""Celery task ``run_job(job_id)``: claim the first waiting job of the database, which may be another one."""

DEFAULT_QUEUE = "trd-default"
"""Queue of jobs whose spec names none, on the broker and in the database."""


def queue_name(requested: str | None, devices: int) -> str:
    """Return the queue that a job waits in: the requested one, else the default for its number of devices."""
    if requested is not None:
        return requested
    return DEFAULT_QUEUE if devices == 1 else f"{DEFAULT_QUEUE}-{devices}"


def redis_options(broker_url: str, *, connect_seconds: float, read_seconds: float, **options: Any) -> dict[str, Any]:
    """Return Celery's `broker_transport_options` for a Redis broker; empty for any other.

    A broker that hangs must block neither a request nor a worker that could poll the database.
    """
    if not broker_url.startswith(("redis://", "rediss://")):
        return {}
    timeouts = {"socket_connect_timeout": connect_seconds, "socket_timeout": read_seconds, "socket_keepalive": True}
    return {**timeouts, **options}
