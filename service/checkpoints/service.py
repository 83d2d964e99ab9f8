"""Finding a checkpoint's files, and giving checkpoints up."""

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
    """The checkpoint of a step, or the newest; raises `NotFoundError`."""
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
    """A file by its name in the manifest; raises `NotFoundError`. No path is ever made of the name."""
    row = repository.file(session, checkpoint.id, name)
    if row is None:
        raise NotFoundError(
            f"checkpoint {checkpoint.step} has no file {name!r}; its manifest lists what there is",
            code="file_not_found",
            param="name",
        )
    return row


def delete(session: Session, owner: str, job_id: str, step: str) -> Checkpoint:
    """Forget a checkpoint that no run goes on from.

    A claim sets the phase and holds the job's row as this does: a worker lists the checkpoints either after they are
    gone, or while they are refused to go.
    """
    job = get_job(session, owner, job_id, for_update=True)
    row = get_checkpoint(session, owner, job_id, step)
    newest = repository.newest(session, job_id)
    if job.status != JobStatus.SUCCEEDED and newest is not None and newest.id == row.id:
        raise ConflictError(
            f"checkpoint {row.step} is what {job_id} ({job.status}) goes on from; delete the job, or an older one",
            code="checkpoint_in_use",
        )
    if job.phase == Phase.PREPARING and job.status in _AT_WORK:
        raise ConflictError(
            f"{job_id} is preparing: should its newest checkpoint not verify, it goes on from an older one; "
            "delete this one once it samples",
            code="checkpoint_in_use",
        )
    session.delete(row)
    return row
