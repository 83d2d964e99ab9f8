"""Queries on ``metric_points``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, func, or_, select
from sqlalchemy.orm import Session

from contract.tables import MetricPoint

Points = Sequence[Row[Any, Any, Any, Any]]
"""Rows of (name, step, value, at)."""


@dataclass(frozen=True)
class MetricRange:
    """Which points of a job; None does not limit."""

    job_id: str
    names: Collection[str] = ()
    from_step: int | None = None
    to_step: int | None = None

    def select(self, *columns: Any) -> Select[Any]:
        """A query on these points."""
        query = select(*columns).where(MetricPoint.job_id == self.job_id)
        if self.names:
            query = query.where(MetricPoint.name.in_(self.names))
        if self.from_step is not None:
            query = query.where(MetricPoint.step >= self.from_step)
        if self.to_step is not None:
            query = query.where(MetricPoint.step <= self.to_step)
        return query


def extents(session: Session, wanted: MetricRange) -> Sequence[Row[Any, Any, Any, Any]]:
    """(name, num_points, first_step, last_step) of each metric."""
    columns = (
        MetricPoint.name,
        func.count().label("num_points"),
        func.min(MetricPoint.step).label("first_step"),
        func.max(MetricPoint.step).label("last_step"),
    )
    return session.execute(wanted.select(*columns).group_by(MetricPoint.name).order_by(MetricPoint.name)).all()


def points(session: Session, wanted: MetricRange) -> Points:
    """(name, step, value, at) of every point, in order."""
    query = wanted.select(MetricPoint.name, MetricPoint.step, MetricPoint.value, MetricPoint.at)
    return session.execute(query.order_by(MetricPoint.name, MetricPoint.step)).all()


def thinned_points(session: Session, wanted: MetricRange, first_step: int, bucket_steps: int) -> Points:
    """The lowest and the highest point of every `bucket_steps` steps, and one that is not finite where there is one.

    Peaks are what one looks for in a curve: an average would hide them.
    """
    bucket = (MetricPoint.step - first_step) // bucket_steps
    is_null = MetricPoint.value.is_(None)
    parts = (MetricPoint.name, bucket, is_null)
    lowest = func.row_number().over(partition_by=parts, order_by=(MetricPoint.value, MetricPoint.step))
    highest = func.row_number().over(partition_by=parts, order_by=(MetricPoint.value.desc(), MetricPoint.step))
    ranked = wanted.select(
        MetricPoint.name,
        MetricPoint.step,
        MetricPoint.value,
        MetricPoint.at,
        lowest.label("from_lowest"),
        highest.label("from_highest"),
    ).subquery()
    columns = (ranked.c.name, ranked.c.step, ranked.c.value, ranked.c.at)
    is_kept = or_(ranked.c.from_lowest == 1, ranked.c.from_highest == 1)
    return session.execute(select(*columns).where(is_kept).order_by(ranked.c.name, ranked.c.step)).all()
