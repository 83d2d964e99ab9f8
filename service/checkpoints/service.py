"""Find checkpoints and their files, and delete checkpoints."""

from __future__ import annotations

from sqlalchemy.orm import Session

from contract.job_state import JobStatus, Phase
from contract.tables import Checkpoint, CheckpointFile
from service.checkpoints import repository
from service.errors import ConflictError, NotFoundError
from service.jobs.service import get_job

LATEST = "latest"
_AT_WORK = (JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.CANCELLING)


def get_checkpoint(session: Session, owner: str, job_id: str, step: str) -> Checkpoint:
    """Return the checkpoint of a step, or the newest; raise `NotFoundError`."""
    get_job(session, owner, job_id)
    if step == LATEST:
        row = repository.newest(session, job_id)
    else:
        is_number = step.isascii() and step.isdigit() and len(step) <= 9
        row = repository.find(session, job_id, int(step)) if is_number else None
    if row is None:
        there = ", ".join(str(found.step) for found in repository.all_of(session, job_id)) or "none"
        raise NotFoundError(
            f"{job_id} has no checkpoint {step}; there are: {there}", code="checkpoint_not_found", param="step"
        )
    return row


def get_file(session: Session, checkpoint: Checkpoint, name: str) -> CheckpointFile:
    """Return a file by its name in the manifest; raise `NotFoundError`. The name is never used as a path."""
    row = repository.file(session, checkpoint.id, name)
    if row is None:
        raise NotFoundError(
            f"checkpoint {checkpoint.step} has no file {name!r}; its manifest lists the files",
            code="file_not_found",
            param="name",
        )
    return row


def delete(session: Session, owner: str, job_id: str, step: str) -> Checkpoint:
    """Delete a checkpoint that no run continues from.

    A claim sets the phase and locks the job's row as this function does, so a worker lists the checkpoints either
    after they are deleted, or while deletion is refused.
    """
    job = get_job(session, owner, job_id, for_update=True)
    row = get_checkpoint(session, owner, job_id, step)
    newest = repository.newest(session, job_id)
    if job.status != JobStatus.SUCCEEDED and newest is not None and newest.id == row.id:
        raise ConflictError(
            f"{job_id} ({job.status}) continues from checkpoint {row.step}; delete the job, or an older checkpoint",
            code="checkpoint_in_use",
        )
    if job.phase == Phase.PREPARING and job.status in _AT_WORK:
        raise ConflictError(
            f"{job_id} is preparing: if its newest checkpoint is damaged, it continues from an older one; "
            "delete this one once it samples",
            code="checkpoint_in_use",
        )
    session.delete(row)
    return row
