"""What a message makes a worker do."""

from __future__ import annotations

from contract.messages import RUN_JOB_TASK
from worker.attempt import run_next
from worker.celery_app import app, slot


@app.task(name=RUN_JOB_TASK)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    """A doorbell: run what waits first. That may be another job than `job_id`, or none any more."""
    run_next(slot)
