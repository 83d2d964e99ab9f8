"""Queries on ``diagnoses``."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from contract.tables import Diagnosis


def page(session: Session, job_id: str, after: int | None, limit: int) -> Sequence[Diagnosis]:
    """A job's diagnoses by round, one more than `limit`; `after` is the round last seen."""
    query = select(Diagnosis).where(Diagnosis.job_id == job_id)
    if after is not None:
        query = query.where(Diagnosis.round > after)
    return session.scalars(query.order_by(Diagnosis.round).limit(limit + 1)).all()
