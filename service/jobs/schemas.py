"""How a job, and an admission without a job, become views."""

from __future__ import annotations

from dataclasses import asdict

from contract.tables import Job
from contract.views.jobs import DryRunView, DurationView, EstimateView, JobError, JobView, MemoryView
from service.jobs.admission import Admission
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


def dry_run_view(admission: Admission) -> DryRunView:
    """Return the view of an admission."""
    expected = EstimateView(**asdict(admission.estimate)) if admission.estimate is not None else None
    forecast = admission.forecast
    assert forecast is not None, "a dry run forecasts"
    return DryRunView(
        spec=admission.spec.model_dump(mode="json"),
        estimate=expected,
        memory=MemoryView(**asdict(forecast.memory)) if forecast.memory is not None else None,
        duration=DurationView(**asdict(forecast.duration)) if forecast.duration is not None else None,
        estimate_notes=forecast.notes,
        notices=admission.notices,
    )
