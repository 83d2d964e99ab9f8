"""Names on the broker. A message is a doorbell: its payload is a job id and nothing else."""

from __future__ import annotations

RUN_JOB_TASK = "trd.run_job"
"""Celery task ``run_job(job_id)``: look at the database for work. What waits first there is run first."""

DEFAULT_QUEUE = "trd-default"
"""Broker and database queue of jobs that name none."""


def queue_name(requested: str | None, devices: int) -> str:
    """The queue a job waits in: the one it asks for, else the default one for its device count."""
    if requested is not None:
        return requested
    return DEFAULT_QUEUE if devices == 1 else f"{DEFAULT_QUEUE}-{devices}"
