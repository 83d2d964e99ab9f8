"""How a job, and an admission without a job, become views."""

from __future__ import annotations

from dataclasses import asdict

from contract.tables import Job
from contract.views.jobs import DryRunView, DurationView, EstimateView, JobError, JobView, MemoryView, PhaseView
from service.jobs.fleet import Place
from service.jobs.service import DryRun
from service.jobs.waiting import UNKNOWN, ExpectedTimes
from trd_estimate.phases import evaluation_share


def job_view(job: Job, place: Place, expected: ExpectedTimes = UNKNOWN) -> JobView:
    """Return the view of a job."""
    error = None
    if job.error_code is not None:
        retryable = bool(job.error_retryable)
        error = JobError(code=job.error_code, message=job.error_message, retryable=retryable, hint=job.error_hint)
    return JobView.of(
        job,
        queue_position=place.position,
        would_wait_for=place.would_wait_for,
        expected_start_at=expected.start_at,
        expected_finish_at=expected.finish_at,
        expected_note=expected.note,
        error=error,
        notices=job.notices or [],
        tags=job.spec.get("tags", []),
        metadata=job.spec.get("metadata", {}),
    )


def dry_run_view(dry_run: DryRun) -> DryRunView:
    """Return the view of a dry run."""
    counts, found = dry_run.estimate, dry_run.forecast
    peak = max(found.phases, key=lambda one: one.total_bytes)
    seconds = [one.seconds for one in found.phases if one.seconds is not None]
    return DryRunView(
        spec=dry_run.spec.model_dump(mode="json"),
        estimate=EstimateView(**asdict(counts)) if counts is not None else None,
        phases=[PhaseView(**asdict(one), total_bytes=one.total_bytes) for one in found.phases],
        memory=MemoryView(
            device=found.hardware.kind,
            device_bytes=found.hardware.memory_bytes,
            peak_bytes=peak.total_bytes,
            peak_phase=peak.phase,
            host_bytes=max(one.host_bytes or 0 for one in found.phases),
            disk_bytes=sum(one.disk_bytes or 0 for one in found.phases),
        )
        if peak.device_bytes
        else None,
        duration=DurationView(
            seconds=sum(seconds),
            evaluation_share=evaluation_share(found.phases),
            time_source=found.time_source,
            num_like_jobs=found.num_like_jobs,
        )
        if seconds and found.time_source is not None
        else None,
        estimate_notes=found.notes,
        notices=dry_run.notices,
        would_wait_for=dry_run.would_wait_for,
    )
