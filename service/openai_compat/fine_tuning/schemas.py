"""Jobs, their events and their checkpoints as the `openai` client reads them.

A client with strict validation knows its own types and statuses only: ours are in ``native``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from contract.job_state import JobStatus
from contract.tables import Checkpoint, Job, JobEvent
from contract.views.checkpoints import CheckpointView
from contract.views.jobs import JobView
from service.jobs.fleet import Place
from service.jobs.schemas import job_view
from service.openai_compat.fine_tuning.translation import DEFAULT_LEARNING_RATE
from service.openai_compat.models.schemas import model_name

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]

STATUSES: dict[JobStatus, Status] = {
    JobStatus.QUEUED: "queued",
    JobStatus.RUNNING: "running",
    JobStatus.PAUSING: "running",
    JobStatus.PAUSED: "queued",  # no worker has it
    JobStatus.CANCELLING: "running",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}


class _View(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class HyperparametersView(_View):
    """Those that the client knows, as the job uses them."""

    batch_size: int
    learning_rate_multiplier: float
    """Times 5e-6."""
    n_epochs: int


class FineTuningError(_View):
    """Why a job failed."""

    code: str
    message: str
    param: None = None


class WandbRun(_View):
    """Where a job reports to within Weights & Biases."""

    project: str
    name: str | None
    entity: str | None
    tags: list[str]


class WandbIntegrationView(_View):
    """An integration of the only type that the client knows."""

    type: Literal["wandb"] = "wandb"
    wandb: WandbRun


class FineTuningJob(_View):
    """A job."""

    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    id: str
    created_at: int
    """Seconds since the epoch."""
    finished_at: int | None
    model: str
    """The student."""
    fine_tuned_model: str | None
    """``GET /v1/models/{name}`` knows it once the job has succeeded; null before."""
    organization_id: str
    """The owner."""
    status: Status
    """A pausing or cancelling job is running, a paused one queued; `native` has the exact status."""
    training_file: str
    """The dataset's id; of data from elsewhere, its reference as JSON."""
    validation_file: str | None
    result_files: list[str]
    """Empty: metrics and trajectories have separate calls, under ``/jobs/{id}``."""
    seed: int
    hyperparameters: HyperparametersView
    trained_tokens: int | None
    """Null until the job is over."""
    estimated_finish: int | None
    error: FineTuningError | None
    integrations: list[WandbIntegrationView]
    """Those of Weights & Biases; `native` has all."""
    metadata: dict[str, str]
    native: JobView
    """The job as ``GET /jobs/{id}`` shows it: status, mode, phase, the whole spec."""


class FineTuningEvent(_View):
    """Something that happened to a job."""

    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    id: str
    """The job's id and the event's number."""
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    """metrics: scores of an evaluation, in `data`."""
    data: dict[str, Any]
    native_type: str
    """status, phase, notice, evaluation or checkpoint."""


LOSSES = ("loss", "heldout_forward_kl")
"""Names of the metrics that a checkpoint is shown with."""


class CheckpointMetrics(_View):
    """What was measured at the step."""

    step: int
    train_loss: float | None
    valid_loss: float | None
    """Forward KL to the teacher on held-out problems; null if it was not measured at this step."""


class FineTuningCheckpoint(_View):
    """A complete checkpoint."""

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    """``GET /v1/models/{name}`` gives its files' addresses."""
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics
    native: CheckpointView
    """The checkpoint as ``GET /jobs/{id}/checkpoints`` shows it."""


def fine_tuning_job(job: Job, place: Place, num_trained_tokens: int) -> FineTuningJob:
    """Map a row to what the `openai` client reads."""
    spec = job.spec
    status = JobStatus(job.status)
    validation = spec["evaluation"]["dataset"]
    optim = spec["optim"]
    return FineTuningJob(
        id=job.id,
        created_at=_seconds(job.created_at),
        finished_at=_seconds(job.finished_at) if job.finished_at is not None else None,
        model=spec["student"],
        fine_tuned_model=model_name(job) if status is JobStatus.SUCCEEDED else None,
        organization_id=job.owner,
        status=STATUSES[status],
        training_file=_file_id(spec["dataset"]),
        validation_file=_file_id(validation) if validation is not None else None,
        result_files=[],
        seed=spec["seed"],
        hyperparameters=HyperparametersView(
            batch_size=optim["batch_size"],
            learning_rate_multiplier=optim["learning_rate"] / DEFAULT_LEARNING_RATE,
            n_epochs=optim["epochs"],
        ),
        # They are the sum of a metric, and unknown once the retention policy has removed it.
        trained_tokens=num_trained_tokens if status.is_final and job.metrics_removed_before is None else None,
        estimated_finish=_estimated_finish(job),
        error=_error(job),
        integrations=[
            WandbIntegrationView(wandb=WandbRun.model_validate(one))
            for one in spec.get("integrations", ())
            if one["type"] == "wandb"
        ],
        metadata=spec["metadata"],
        native=job_view(job, place),
    )


def _seconds(at: datetime) -> int:
    return int(at.timestamp())


def _file_id(dataset: str | dict[str, Any]) -> str:
    return dataset if isinstance(dataset, str) else json.dumps(dataset)


def _estimated_finish(job: Job) -> int | None:
    if STATUSES[JobStatus(job.status)] != "running" or job.eta_seconds is None:
        return None
    return int(datetime.now(UTC).timestamp() + job.eta_seconds)


def _error(job: Job) -> FineTuningError | None:
    if job.status != JobStatus.FAILED or job.error_code is None:
        return None
    return FineTuningError(code=job.error_code, message=job.error_message or job.error_hint or job.error_code)


def event_id(job_id: str, sequence: int) -> str:
    """Return an event's id; numbers grow by one within a job."""
    return f"{job_id}:{sequence}"


def fine_tuning_event(row: JobEvent) -> FineTuningEvent:
    """Map a row to what the `openai` client reads."""
    return FineTuningEvent(
        id=event_id(row.job_id, row.sequence),
        created_at=_seconds(row.created_at),
        level=row.level,  # type: ignore[arg-type]  # one of the three, by whoever wrote it
        message=row.message,
        type="metrics" if row.type == "evaluation" else "message",
        data=row.data,
        native_type=row.type,
    )


def fine_tuning_checkpoint(job: Job, row: Checkpoint, losses: Mapping[str, float]) -> FineTuningCheckpoint:
    """Map a row to what the `openai` client reads; `losses` are those of its step."""
    return FineTuningCheckpoint(
        id=row.id,
        created_at=_seconds(row.created_at),
        fine_tuned_model_checkpoint=model_name(job, row.step),
        fine_tuning_job_id=row.job_id,
        step_number=row.step,
        metrics=CheckpointMetrics(
            step=row.step, train_loss=losses.get("loss"), valid_loss=losses.get("heldout_forward_kl")
        ),
        native=CheckpointView.of(row),
    )
