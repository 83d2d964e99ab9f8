"""Queries on ``chat_answers``, and the files of the model that answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from contract.database import DatabaseNow
from contract.tables import ChatAnswer, Checkpoint, CheckpointFile, Job


@dataclass(frozen=True)
class Claimed:
    """An answer that this worker generates."""

    id: str
    job_id: str
    step: int
    model: str
    question: dict[str, Any]
    origin: dict[str, Any] | None
    worker: str


def claim(session: Session, *, queues: Sequence[str], worker: str, lease_seconds: float) -> Claimed | None:
    """Claim the oldest answer of `queues` that somebody still waits for; return None if there is none."""
    waiting = (
        select(ChatAnswer.id)
        .where(ChatAnswer.worker.is_(None), ChatAnswer.queue.in_(queues), ChatAnswer.wanted_until > DatabaseNow())
        .order_by(ChatAnswer.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    taken = session.scalars(
        update(ChatAnswer)
        .where(ChatAnswer.id == waiting)
        .values(worker=worker, leased_until=DatabaseNow(lease_seconds))
        .returning(ChatAnswer)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if taken is None:
        return None
    return Claimed(taken.id, taken.job_id, taken.step, taken.model, taken.question, taken.origin, worker)


def is_waiting(session: Session, queues: Sequence[str]) -> bool:
    """Return whether an answer waits; takes no lock."""
    waiting = select(ChatAnswer.id).where(ChatAnswer.worker.is_(None), ChatAnswer.queue.in_(queues))
    return session.scalar(waiting.where(ChatAnswer.wanted_until > DatabaseNow()).limit(1)) is not None


def record(session: Session, answer: Claimed, lease_seconds: float, **columns: Any) -> bool:
    """Renew the lease and set columns; return False if nobody reads the answer any more."""
    mine = update(ChatAnswer).where(ChatAnswer.id == answer.id, ChatAnswer.worker == answer.worker)
    changed = mine.where(ChatAnswer.wanted_until > DatabaseNow()).values(
        leased_until=DatabaseNow(lease_seconds), **columns
    )
    return session.execute(changed.returning(ChatAnswer.id)).one_or_none() is not None


def spec_of(session: Session, job_id: str) -> dict[str, Any] | None:
    """Return the job's spec; None if the job is gone."""
    return session.scalar(select(Job.spec).where(Job.id == job_id, Job.deleted_at.is_(None)))


def checkpoint_files(session: Session, job_id: str, step: int) -> Sequence[CheckpointFile]:
    """Return the files of a checkpoint; none if it is gone."""
    found = select(CheckpointFile).join(Checkpoint, Checkpoint.id == CheckpointFile.checkpoint_id)
    return session.scalars(found.where(Checkpoint.job_id == job_id, Checkpoint.step == step)).all()
