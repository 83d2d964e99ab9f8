"""Queries on ``checkpoints`` and ``checkpoint_files``.

The checkpoint of step 0 is no result: it holds the untrained student and the first round's trajectories, and is kept
for resuming alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from contract.tables import Checkpoint, CheckpointFile


def all_of(session: Session, job_id: str) -> Sequence[Checkpoint]:
    """Return a job's checkpoints by step; a run keeps a handful."""
    return session.scalars(select(Checkpoint).where(*_results(job_id)).order_by(Checkpoint.step)).all()


def before(session: Session, job_id: str, checkpoint_id: str | None, limit: int) -> Sequence[Checkpoint]:
    """Return the checkpoints, newest first, from the one below the id on, or from the newest."""
    query = select(Checkpoint).where(*_results(job_id))
    if checkpoint_id is not None:
        query = query.where(Checkpoint.id < checkpoint_id)
    return session.scalars(query.order_by(Checkpoint.id.desc()).limit(limit)).all()


def newest(session: Session, job_id: str) -> Checkpoint | None:
    """Return the newest checkpoint, from which a resumed run continues."""
    return session.scalar(select(Checkpoint).where(*_results(job_id)).order_by(Checkpoint.step.desc()).limit(1))


def find(session: Session, job_id: str, step: int) -> Checkpoint | None:
    """Return the checkpoint of a step."""
    return session.scalar(select(Checkpoint).where(*_results(job_id), Checkpoint.step == step))


def _results(job_id: str) -> tuple[ColumnElement[bool], ...]:
    return (Checkpoint.job_id == job_id, Checkpoint.step > 0)


def files(session: Session, checkpoint_id: str) -> Sequence[CheckpointFile]:
    """Return a checkpoint's files by name."""
    query = select(CheckpointFile).where(CheckpointFile.checkpoint_id == checkpoint_id)
    return session.scalars(query.order_by(CheckpointFile.name)).all()


def file(session: Session, checkpoint_id: str, name: str) -> CheckpointFile | None:
    """Return one file by its whole name."""
    return session.get(CheckpointFile, (checkpoint_id, name))
