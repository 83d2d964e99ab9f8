"""Queries on ``checkpoints`` and ``checkpoint_files``."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from contract.tables import Checkpoint, CheckpointFile


def all_of(session: Session, job_id: str) -> Sequence[Checkpoint]:
    """A job's checkpoints by step; a run keeps a handful."""
    return session.scalars(select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step)).all()


def newest(session: Session, job_id: str) -> Checkpoint | None:
    """Return the checkpoint that a resumed run continues from."""
    query = select(Checkpoint).where(Checkpoint.job_id == job_id)
    return session.scalar(query.order_by(Checkpoint.step.desc()).limit(1))


def find(session: Session, job_id: str, step: int) -> Checkpoint | None:
    """The checkpoint of a step."""
    return session.scalar(select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.step == step))


def files(session: Session, checkpoint_id: str) -> Sequence[CheckpointFile]:
    """A checkpoint's files by name."""
    query = select(CheckpointFile).where(CheckpointFile.checkpoint_id == checkpoint_id)
    return session.scalars(query.order_by(CheckpointFile.name)).all()


def file(session: Session, checkpoint_id: str, name: str) -> CheckpointFile | None:
    """One file, by its whole name."""
    return session.get(CheckpointFile, (checkpoint_id, name))
