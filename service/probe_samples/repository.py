"""Queries on ``probe_samples``."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from contract.tables import ProbeSample


def page(
    session: Session, job_id: str, step: int | None, after: tuple[int, int] | None, limit: int
) -> Sequence[ProbeSample]:
    """Samples by step and position, one more than `limit`; `after` is the (step, position) last seen."""
    query = select(ProbeSample).where(ProbeSample.job_id == job_id)
    if step is not None:
        query = query.where(ProbeSample.step == step)
    if after is not None:
        query = query.where(tuple_(ProbeSample.step, ProbeSample.position) > tuple_(*after))
    return session.scalars(query.order_by(ProbeSample.step, ProbeSample.position).limit(limit + 1)).all()
