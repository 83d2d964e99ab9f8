"""Queries on ``chat_answers``."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from contract.job_state import LEASED_STATUSES
from contract.tables import ChatAnswer, Job


def find(session: Session, answer_id: str) -> ChatAnswer | None:
    """Return the answer as it is now."""
    return session.get(ChatAnswer, answer_id)


def renew(session: Session, answer_id: str, until: datetime) -> None:
    """Note that somebody still reads the answer."""
    session.execute(update(ChatAnswer).where(ChatAnswer.id == answer_id).values(wanted_until=until))


def forget(session: Session, answer_id: str) -> None:
    """Delete the answer; a worker that generates it stops."""
    session.execute(delete(ChatAnswer).where(ChatAnswer.id == answer_id))


def forget_unread(session: Session, now: datetime) -> None:
    """Delete answers whose readers are gone."""
    session.execute(delete(ChatAnswer).where(ChatAnswer.wanted_until < now))


def num_open(session: Session, owner: str) -> int:
    """Return the number of the owner's answers that wait or are generated."""
    mine = select(func.count()).select_from(ChatAnswer).where(ChatAnswer.owner == owner, ChatAnswer.end.is_(None))
    return session.scalar(mine) or 0


def position(session: Session, answer: ChatAnswer, now: datetime) -> int:
    """Return the answer's place among those that wait in its queue, from 1."""
    before = select(func.count()).select_from(ChatAnswer).where(ChatAnswer.queue == answer.queue)
    before = before.where(ChatAnswer.id < answer.id, ChatAnswer.worker.is_(None), ChatAnswer.wanted_until > now)
    return 1 + (session.scalar(before) or 0)


def busy_workers(session: Session) -> set[str]:
    """Return the names of the workers that hold a job."""
    return set(filter(None, session.scalars(select(Job.lease_owner).where(Job.status.in_(LEASED_STATUSES)))))
