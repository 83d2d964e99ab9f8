"""Queries on ``job_events`` and on the columns of a job that change while it runs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from contract.tables import Job, JobEvent


def events_after(session: Session, job_id: str, after: int, limit: int) -> Sequence[JobEvent]:
    """Return the events after number `after`, in order."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.sequence > after)
    return session.scalars(query.order_by(JobEvent.sequence).limit(limit)).all()


def phases(session: Session, job_id: str, limit: int) -> Sequence[Row[datetime, str]]:
    """Return (created_at, phase) of the newest events that begin a phase, in order."""
    columns = (JobEvent.created_at, JobEvent.data["phase"].as_string().label("phase"))
    query = select(*columns).where(JobEvent.job_id == job_id, JobEvent.type == "phase")
    return session.execute(query.order_by(JobEvent.sequence.desc()).limit(limit)).all()[::-1]


def events_before(session: Session, job_id: str, before: int | None, limit: int) -> Sequence[JobEvent]:
    """Return the events, newest first, from the one below number `before` on, or from the newest."""
    query = select(JobEvent).where(JobEvent.job_id == job_id)
    if before is not None:
        query = query.where(JobEvent.sequence < before)
    return session.scalars(query.order_by(JobEvent.sequence.desc()).limit(limit)).all()


def job_states(session: Session, job_ids: Collection[str]) -> Sequence[Row[Any]]:
    """Return status and progress of the jobs that are not deleted."""
    columns = (
        Job.id,
        Job.status,
        Job.attempt,
        Job.phase,
        Job.phase_done,
        Job.phase_total,
        Job.round,
        Job.num_rounds,
        Job.step,
        Job.num_steps,
        Job.eta_seconds,
        Job.latest_metrics,
        Job.num_events,
    )
    return session.execute(select(*columns).where(Job.id.in_(job_ids), Job.deleted_at.is_(None))).all()
