"""Jobs as the API shows them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from contract.job_spec import JobSpec, Mode
from contract.job_state import JobStatus, Phase
from contract.tables import Job
from service.jobs.admission import Admission
from service.jobs.waiting import UNKNOWN, ExpectedTimes


class _View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class JobError(_View):
    """Why a job failed."""

    code: str
    """Stable; see contract/error_codes.py."""
    message: str | None
    retryable: bool
    """True where the very same job may succeed when it is resumed."""
    hint: str | None


class JobView(_View):
    """A job."""

    object: Literal["job"] = "job"
    id: str
    name: str | None
    mode: Mode
    status: JobStatus
    queue: str
    priority: int
    queue_position: int | None
    """1 is claimed next; counting stops at 1,000; null unless the job is queued."""
    attempt: int
    """Number of the newest attempt; 0 before the first."""
    phase: Phase | None
    phase_done: int | None
    """Samples, sequences or steps of the phase that are done."""
    phase_total: int | None
    round: int | None
    """From 0."""
    num_rounds: int | None
    step: int
    """Optimizer steps done."""
    num_steps: int | None
    eta_seconds: float | None
    """To the end of the whole run, as estimated by the engine."""
    expected_start_at: datetime | None
    """Of a queued job, by GET /jobs/{id} alone: when a worker will be free for it, from what the jobs that run and
    wait before it still take. Null where that is not known for one of them, beyond 20 waiting jobs, and while no
    worker is known to serve the queue."""
    expected_finish_at: datetime | None
    """expected_start_at and what like jobs of its owner took; null where there is none, or the start is null."""
    expected_note: str | None
    """Why one of the two is null, of a queued job by GET /jobs/{id}; for people, its words may change."""
    latest_metrics: dict[str, float | None]
    error: JobError | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    cloned_from: str | None
    tags: list[str]
    metadata: dict[str, str]
    spec: dict[str, Any]
    """With every default resolved."""


class EstimateView(_View):
    """Counts of a whole run. Token counts are upper bounds: every completion as long as its budget."""

    num_problems: int
    num_heldout: int
    num_trajectories: int
    num_steps: int
    num_evaluations: int
    num_trained_trajectories: int
    """Those that go through optimizer steps, each as often as it does."""
    num_evaluation_samples: int
    max_rollout_tokens: int
    max_refined_tokens: int
    max_trained_tokens: int
    max_evaluation_tokens: int


class MemoryView(_View):
    """Peak bytes on one device, by the formula of docs/estimate.md; what libraries and driver hold is not in it."""

    student_bytes: int
    """Weights, the adapter included."""
    teacher_bytes: int
    """Weights of its own; 0 where it shares the student's or is served elsewhere."""
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    """Of the largest micro-batch."""
    loss_bytes: int
    sampler_bytes: int
    """The sampler's copies of weights, and keys and values of one longest sequence for each."""
    total_bytes: int


class DurationView(_View):
    """How long one attempt takes, the wait in the queue left out."""

    seconds: float
    seconds_by_phase: dict[str, float]
    time_source: Literal["history", "calibration"]
    """history: medians of the owner's like jobs; calibration: a constant that was measured once on a CPU, times
    the most tokens there can be."""
    num_like_jobs: int
    """How many jobs the medians are of."""


class DryRunView(_View):
    """What ``POST /jobs`` would make."""

    object: Literal["job.dry_run"] = "job.dry_run"
    spec: JobSpec
    """With every default resolved."""
    estimate: EstimateView | None
    """Null where the number of problems is known only to the worker."""
    memory: MemoryView | None
    """On each device; null where a model's sizes are not known here."""
    duration: DurationView | None
    """Null where the number of problems is not known, or neither like jobs nor the models' sizes are."""
    estimate_notes: list[str]
    """What the estimates assume, and why one is missing."""
    notices: list[str]
    """What was chosen otherwise than by default, and why."""


class DeletedView(_View):
    """What was removed."""

    object: Literal["job"] = "job"
    id: str
    deleted: Literal[True] = True


def job_view(job: Job, queue_position: int | None, expected: ExpectedTimes = UNKNOWN) -> JobView:
    """A row as the API shows it."""
    plain = {name: getattr(job, name) for name in _SAME_NAMES}
    return JobView(
        **plain,
        mode=Mode(job.mode),
        status=JobStatus(job.status),
        phase=Phase(job.phase) if job.phase is not None else None,
        queue_position=queue_position,
        expected_start_at=expected.start_at,
        expected_finish_at=expected.finish_at,
        expected_note=expected.note,
        error=_error(job),
        tags=job.spec.get("tags", []),
        metadata=job.spec.get("metadata", {}),
    )


_SAME_NAMES = (
    "id",
    "name",
    "queue",
    "priority",
    "attempt",
    "phase_done",
    "phase_total",
    "round",
    "num_rounds",
    "step",
    "num_steps",
    "eta_seconds",
    "latest_metrics",
    "created_at",
    "started_at",
    "finished_at",
    "cloned_from",
    "spec",
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
    """An admission as the API shows it."""
    expected = EstimateView(**asdict(admission.estimate)) if admission.estimate is not None else None
    forecast = admission.forecast
    assert forecast is not None, "a dry run forecasts"
    return DryRunView(
        spec=admission.spec,
        estimate=expected,
        memory=MemoryView(**asdict(forecast.memory)) if forecast.memory is not None else None,
        duration=DurationView(**asdict(forecast.duration)) if forecast.duration is not None else None,
        estimate_notes=forecast.notes,
        notices=admission.notices,
    )
