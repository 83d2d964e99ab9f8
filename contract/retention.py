"""Retention: which records of ended jobs the operator's policy removes, and their removal batch by batch.

The service shows in advance, by the same conditions, what a worker removes. Only jobs that are over are touched. What
stays of each is its row, its last event (the outcome), its last checkpoint, its evaluations and its diagnoses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, LargeBinary, cast, delete, func, insert, or_, select, tuple_, update
from sqlalchemy.orm import Session, aliased

from contract.database import DatabaseNow
from contract.ids import AUDIT_PREFIX, new_id
from contract.job_state import FINAL_STATUSES
from contract.settings import DeploymentSettings
from contract.tables import AuditEntry, Base, Checkpoint, Job, JobEvent, MetricPoint, ProbeSample, Trajectory
from contract.views.audit import AuditAction

ACTOR = "retention"
"""Owner of the entries in the audit log."""
BATCH_ROWS = 500
"""Rows that one transaction deletes: on SQLite all other writers wait for it."""
SECONDS_PER_DAY = 86_400.0


class RecordKind(StrEnum):
    """Records with separate time limits, in the order in which they are removed."""

    EVENTS = "events"
    METRICS = "metrics"
    TRAJECTORIES = "trajectories"
    CHECKPOINTS = "checkpoints"


Policy = Mapping[RecordKind, float]
"""Days from the end of a job to the removal of its records; a missing kind is kept forever."""

_TABLES: dict[RecordKind, tuple[type[Base], ...]] = {
    RecordKind.EVENTS: (JobEvent,),
    RecordKind.METRICS: (MetricPoint,),
    RecordKind.TRAJECTORIES: (Trajectory, ProbeSample),
    RecordKind.CHECKPOINTS: (Checkpoint,),
}


def policy_of(settings: DeploymentSettings) -> Policy:
    """Return the policy that the settings describe."""
    days = {kind: getattr(settings, f"retain_{kind}_days") for kind in RecordKind}
    return {kind: limit for kind, limit in days.items() if limit is not None}


def _removed_before(kind: RecordKind) -> Any:
    return getattr(Job, f"{kind}_removed_before")


def is_due(kind: RecordKind, days: float) -> ColumnElement[bool]:
    """Return the condition that a job ended that long ago by the database's clock, and has records left."""
    removed_before = _removed_before(kind)
    # As a subquery: PostgreSQL would ask its clock again for every entry of the index.
    latest = select(DatabaseNow(-days * SECONDS_PER_DAY)).scalar_subquery()
    return (
        (Job.finished_at < latest)
        & Job.deleted_at.is_(None)
        & or_(removed_before.is_(None), removed_before <= Job.finished_at)  # as in the index
        # The empty text keeps SQLite from an index on the status, which has all ended jobs.
        & Job.status.concat("").in_(FINAL_STATUSES)
    )


def due_jobs(session: Session, kind: RecordKind, days: float, limit: int) -> Sequence[str]:
    """Return the ids of jobs with records to remove, those that ended first first."""
    return session.scalars(select(Job.id).where(is_due(kind, days)).order_by(Job.finished_at).limit(limit)).all()


def count_due(session: Session, kind: RecordKind, days: float) -> tuple[int, datetime | None]:
    """Return the number of jobs with records to remove, and when the first of them ended."""
    num_jobs, oldest = session.execute(select(func.count(), func.min(Job.finished_at)).where(is_due(kind, days))).one()
    return num_jobs, oldest


def _removable(table: type[Base], job_ids: Iterable[str]) -> ColumnElement[bool]:
    mine: ColumnElement[bool] = table.job_id.in_(list(job_ids))  # type: ignore[attr-defined]
    if table is JobEvent:
        # Streams end at the last event, and estimates of later jobs read the outcome in it.
        last = select(Job.num_events).where(Job.id == JobEvent.job_id).scalar_subquery()
        return mine & (JobEvent.sequence < last)
    if table is Checkpoint:
        newer = aliased(Checkpoint)
        return mine & select(newer.id).where(newer.job_id == Checkpoint.job_id, newer.step > Checkpoint.step).exists()
    return mine


def num_rows(session: Session, kind: RecordKind, job_ids: Sequence[str]) -> int:
    """Return the number of rows to remove of these jobs."""
    counts = [select(func.count()).where(_removable(table, job_ids)) for table in _TABLES[kind]]
    return sum(session.scalar(count) or 0 for count in counts)


def num_bytes(session: Session, kind: RecordKind, job_ids: Sequence[str]) -> int:
    """Return about how many bytes the rows to remove take: files of checkpoints, of others what their columns store.

    PostgreSQL answers without reading long texts, as compressed; SQLite reads them.
    """
    is_postgres = session.get_bind().dialect.name == "postgresql"
    total = 0
    for table in _TABLES[kind]:
        columns = table.__table__.columns
        sizes = [func.pg_column_size(c) if is_postgres else func.length(cast(c, LargeBinary)) for c in columns]
        of_row: Any = Checkpoint.num_bytes if table is Checkpoint else sum(func.coalesce(size, 0) for size in sizes)
        total += int(session.scalar(select(func.sum(of_row)).where(_removable(table, job_ids))) or 0)
    return total


@dataclass(frozen=True)
class Removed:
    """What one transaction did to a job."""

    num_rows: int
    attempt: int
    """Number of the job's newest attempt."""

    @property
    def is_last(self) -> bool:
        """Whether no rows are left."""
        return self.num_rows < BATCH_ROWS


def remove_batch(session: Session, kind: RecordKind, days: float, job_id: str) -> Removed | None:
    """Delete some of the job's rows; None if the job is not due any more, or if another transaction holds it.

    The job's row stays locked until the transaction ends, so that nobody resumes the job meanwhile. The first batch
    says in the job and in the audit log that records were removed.
    """
    columns = select(Job.finished_at, Job.attempt, _removed_before(kind).label("removed_before"))
    job = session.execute(
        columns.where(Job.id == job_id, is_due(kind, days)).with_for_update(skip_locked=True)
    ).one_or_none()
    if job is None:
        return None
    if job.removed_before != job.finished_at and (found := num_rows(session, kind, [job_id])):
        marked = update(Job).where(Job.id == job_id).values({_removed_before(kind): job.finished_at})
        session.execute(marked.execution_options(synchronize_session=False))
        _record(session, job_id, kind=kind, days=days, num_rows=found)
    num_deleted = 0
    for table in _TABLES[kind]:
        key = list(table.__table__.primary_key)
        some = select(*key).where(_removable(table, [job_id])).order_by(*key).limit(BATCH_ROWS - num_deleted)
        statement = delete(table).where(tuple_(*key).in_(some)).execution_options(synchronize_session=False)
        deleted = session.execute(statement)
        num_deleted += deleted.rowcount  # type: ignore[attr-defined]
    return Removed(num_deleted, job.attempt)


def complete(session: Session, kind: RecordKind, days: float, job_id: str) -> None:
    """Record that nothing of the kind is left of a job that is still due."""
    statement = update(Job).where(Job.id == job_id, is_due(kind, days)).values({_removed_before(kind): DatabaseNow()})
    session.execute(statement.execution_options(synchronize_session=False))


def _record(session: Session, job_id: str, **detail: Any) -> None:
    who = {"owner": ACTOR, "key_id": "", "request_id": ""}
    what = {"action": AuditAction.RETENTION_REMOVE, "target": job_id, "detail": detail}
    session.execute(insert(AuditEntry).values(id=new_id(AUDIT_PREFIX), at=datetime.now(UTC), **who, **what))
