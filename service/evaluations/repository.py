"""Queries on ``evaluations``."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from contract.tables import Evaluation


def all_of(session: Session, job_id: str) -> Sequence[Evaluation]:
    """A job's evaluations by step; a run makes a handful."""
    query = select(Evaluation).where(Evaluation.job_id == job_id)
    return session.scalars(query.order_by(Evaluation.step, Evaluation.dataset)).all()
