"""How a job, and an admission without a job, become views."""

from __future__ import annotations

from dataclasses import asdict

from contract.tables import Job
from contract.views.jobs import DryRunView, DurationView, EstimateView, JobError, JobView, MemoryView
from service.jobs.service import DryRun
from service.jobs.waiting import UNKNOWN, ExpectedTimes


def job_view(job: Job, queue_position: int | None, expected: ExpectedTimes = UNKNOWN) -> JobView:
    """Return the view of a job."""
    return JobView.of(
        job,
        queue_position=queue_position,
        expected_start_at=expected.start_at,
        expected_finish_at=expected.finish_at,
        expected_note=expected.note,
        error=_error(job),
        notices=job.notices or [],
        tags=job.spec.get("tags", []),
        metadata=job.spec.get("metadata", {}),
    )


def _error(job: Job) -> JobError | None:
    if job.error_code is None:
        return None
    return JobError(
        code=job.error_code,
        message=job.error_message,
        retryable=bool(job.error_retryable),
        hint=job.error_hint,
    )


def dry_run_view(dry_run: DryRun) -> DryRunView:
    """Return the view of a dry run."""
    counts, forecast = dry_run.estimate, dry_run.forecast
    return DryRunView(
        spec=dry_run.spec.model_dump(mode="json"),
        estimate=EstimateView(**asdict(counts)) if counts is not None else None,
        memory=MemoryView(**asdict(forecast.memory)) if forecast.memory is not None else None,
        duration=DurationView(**asdict(forecast.duration)) if forecast.duration is not None else None,
        estimate_notes=forecast.notes,
        notices=dry_run.notices,
    )
