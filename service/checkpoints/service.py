"""Find checkpoints and their files, and delete checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from sqlalchemy.orm import Session

from contract.database import Database
from contract.job_state import JobStatus, Phase
from contract.tables import Checkpoint, CheckpointFile, Job
from contract.views.audit import AuditAction
from contract.views.checkpoints import CheckpointFileView, ManifestView
from service.audit.log import record
from service.checkpoints import repository
from service.errors import ConflictError, NotFoundError
from service.jobs.service import get_job
from service.query import cut

LATEST = "latest"
_AT_WORK = (JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.CANCELLING)


class CheckpointService:
    """A job's checkpoints. All methods raise `NotFoundError`, also for another owner's job; `step` may be "latest"."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all_of(self, owner: str, job_id: str) -> Sequence[Checkpoint]:
        """Return the job's checkpoints by step."""
        with self._database.read() as session:
            get_job(session, owner, job_id)
            return repository.all_of(session, job_id)

    def page_before(
        self, owner: str, job_id: str, before: str | None, limit: int
    ) -> tuple[Job, Sequence[Checkpoint], bool]:
        """Return the job, its checkpoints below the id `before`, the newest first, and whether older ones follow."""
        with self._database.read() as session:
            job = get_job(session, owner, job_id)
            return job, *cut(repository.before(session, job_id, before, limit + 1), limit)

    def with_files(self, owner: str, job_id: str, step: str) -> tuple[Checkpoint, Sequence[CheckpointFile]]:
        """Return a checkpoint and its files by name."""
        with self._database.read() as session:
            row = _get(session, owner, job_id, step)
            return row, repository.files(session, row.id)

    def with_file(self, owner: str, job_id: str, step: str, name: str) -> tuple[Checkpoint, CheckpointFile]:
        """Return a checkpoint and one file by its name in the manifest. The name is never used as a path."""
        with self._database.read() as session:
            row = _get(session, owner, job_id, step)
            file = repository.file(session, row.id, name)
        if file is None:
            raise NotFoundError(
                f"checkpoint {row.step} has no file {name!r}; its manifest lists the files",
                code="file_not_found",
                param="name",
            )
        return row, file

    def delete(self, owner: str, job_id: str, step: str) -> Checkpoint:
        """Delete a checkpoint that no run continues from; its files are left to the caller.

        A claim sets the phase and locks the job's row as this method does, so a worker lists the checkpoints either
        after they are deleted, or while deletion is refused.
        """
        with self._database.write() as session:
            job = get_job(session, owner, job_id, for_update=True)
            row = _get(session, owner, job_id, step)
            newest = repository.newest(session, job_id)
            if job.status != JobStatus.SUCCEEDED and newest is not None and newest.id == row.id:
                raise ConflictError(
                    f"{job_id} ({job.status}) continues from checkpoint {row.step}; delete the job, or an older "
                    "checkpoint",
                    code="checkpoint_in_use",
                )
            if job.phase == Phase.PREPARING and job.status in _AT_WORK:
                raise ConflictError(
                    f"{job_id} is preparing: if its newest checkpoint is damaged, it continues from an older one; "
                    "delete this one once it samples",
                    code="checkpoint_in_use",
                )
            session.delete(row)
            record(session, AuditAction.CHECKPOINT_DELETE, f"{job_id}/{row.step}")
        return row


def _get(session: Session, owner: str, job_id: str, step: str) -> Checkpoint:
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


def manifest_view(row: Checkpoint, files: Sequence[CheckpointFile]) -> ManifestView:
    """Return the view of a checkpoint with its files."""
    base = f"/jobs/{row.job_id}/checkpoints/{row.step}"
    views = [CheckpointFileView.of(file, url=f"{base}/files/{quote(file.name)}") for file in files]
    return ManifestView.of(row, files=views, archive_url=f"{base}/archive")
