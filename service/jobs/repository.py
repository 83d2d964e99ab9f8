"""Queries on ``jobs``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import cast

from sqlalchemy import Integer, ScalarSelect, Select, Table, bindparam, delete, func, insert, or_, select
from sqlalchemy.orm import Session

from contract.ids import JOB_PREFIX, first_id
from contract.job_state import FINAL_STATUSES, JobStatus
from contract.tables import (
    Attempt,
    Checkpoint,
    Evaluation,
    Job,
    JobEvent,
    JobTag,
    MetricPoint,
    Trajectory,
)
from service.events.repository import NewEvent, insert_events


@dataclass(frozen=True)
class JobFilter:
    """Which jobs of an owner to list; None does not filter."""

    statuses: Collection[JobStatus] = ()
    mode: str | None = None
    tag: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Pairs that the job's own metadata hold, all of them. No index helps here. Keys without quotes and
    backslashes: SQLite writes them into a path."""


_JOBS, _TAGS = cast(Table, Job.__table__), cast(Table, JobTag.__table__)


def add(session: Session, job: Job, tags: Collection[str], events: Sequence[NewEvent]) -> None:
    """Store a new job with its first events; raises IntegrityError where its idempotency key is taken.

    Rows are inserted as such: the unit of work, which would find out what to insert, costs more than the
    inserts do.
    """
    job.num_events = len(events)
    values = {column.key: getattr(job, column.key) for column in _JOBS.columns}
    session.execute(insert(_JOBS), values)
    insert_events(session, job.id, 0, events)
    if tags:
        session.execute(insert(_TAGS), [{"job_id": job.id, "tag": tag} for tag in dict.fromkeys(tags)])


_FIND = select(Job).where(Job.id == bindparam("job_id"), Job.owner == bindparam("owner"), Job.deleted_at.is_(None))
_FIND_AND_LOCK = _FIND.with_for_update()


def find(session: Session, owner: str, job_id: str, *, for_update: bool = False) -> Job | None:
    """The owner's job, locked until the transaction's end where asked for."""
    return session.scalar(_FIND_AND_LOCK if for_update else _FIND, {"job_id": job_id, "owner": owner})


def by_idempotency_key(session: Session, owner: str, key: str) -> Job | None:
    """The job that was made under the key."""
    return session.scalar(select(Job).where(Job.owner == owner, Job.idempotency_key == key))


def newest_with_body(session: Session, owner: str, body_sha256: str, since: datetime) -> Job | None:
    """The newest job since then that was asked for in the same words."""
    recent = select(Job).where(Job.owner == owner, Job.id >= first_id(JOB_PREFIX, since), Job.deleted_at.is_(None))
    return session.scalar(recent.where(Job.body_sha256 == body_sha256).order_by(Job.id.desc()).limit(1))


def page(session: Session, owner: str, wanted: JobFilter, after: str | None, limit: int) -> Sequence[Job]:
    """Jobs of the owner, newest first, one more than `limit`."""
    query = _filtered(select(Job).where(Job.owner == owner, Job.deleted_at.is_(None)), wanted)
    if after is not None:
        query = query.where(Job.id < after)
    return session.scalars(query.order_by(Job.id.desc()).limit(limit + 1)).all()


def _filtered(query: Select[Job], wanted: JobFilter) -> Select[Job]:
    """Ids begin with the time of creation, so that a range of time is a range of the index on them."""
    if wanted.statuses:
        query = query.where(Job.status.in_(wanted.statuses))
    if wanted.mode is not None:
        query = query.where(Job.mode == wanted.mode)
    if wanted.tag is not None:
        query = query.where(Job.id.in_(select(JobTag.job_id).where(JobTag.tag == wanted.tag)))
    if wanted.created_after is not None:
        query = query.where(Job.id >= first_id(JOB_PREFIX, wanted.created_after))
        query = query.where(Job.created_at >= wanted.created_after)
    if wanted.created_before is not None:
        query = query.where(Job.id < first_id(JOB_PREFIX, wanted.created_before + timedelta(milliseconds=1)))
        query = query.where(Job.created_at < wanted.created_before)
    for key, value in wanted.metadata.items():
        query = query.where(Job.spec["metadata"][key].as_string() == value)
    return query


def _num_of(found: Select[str]) -> ScalarSelect[int]:
    return select(func.count()).select_from(found.subquery()).scalar_subquery()


# Statements of every request are built once: building one takes longer than running it.
_MOST = bindparam("most", type_=Integer)
_WAITING = select(Job.id).where(Job.status == JobStatus.QUEUED, Job.queue == bindparam("queue")).limit(_MOST)
_MORE_URGENT = _WAITING.where(Job.priority > bindparam("priority"))
_OLDER = _WAITING.where(Job.priority == bindparam("priority"), Job.id < bindparam("job_id"))
_NUM_BEFORE = select(_num_of(_MORE_URGENT) + _num_of(_OLDER))
_OPEN = [status for status in JobStatus if status not in FINAL_STATUSES]
_NUM_OPEN = select(_num_of(select(Job.id).where(Job.owner == bindparam("owner"), Job.status.in_(_OPEN)).limit(_MOST)))


def queue_position(session: Session, job: Job, most: int) -> int:
    """How many jobs are claimed before this one, itself included; counting stops at `most`."""
    values = {"queue": job.queue, "priority": job.priority, "job_id": job.id, "most": most - 1}
    num_before: int = session.execute(_NUM_BEFORE, values).scalar_one()
    return min(most, 1 + num_before)


def num_open(session: Session, owner: str, most: int) -> int:
    """How many of the owner's jobs wait or run; counting stops at `most`."""
    return session.execute(_NUM_OPEN, {"owner": owner, "most": most}).scalar_one()


def uses_dataset(session: Session, owner: str, dataset_id: str) -> str | None:
    """A job of the owner that is not over and names the dataset."""
    dataset = Job.spec["dataset"].as_string()
    evaluated = Job.spec["evaluation"]["dataset"].as_string()
    query = select(Job.id).where(Job.owner == owner, Job.status.in_(_OPEN))
    return session.scalar(query.where(or_(dataset == dataset_id, evaluated == dataset_id)).limit(1))


def remove_records(session: Session, job_id: str) -> list[str]:
    """Forget what a job's run produced, and return where its checkpoints lie."""
    prefixes = session.scalars(select(Checkpoint.storage_prefix).where(Checkpoint.job_id == job_id)).all()
    for table in (MetricPoint, Trajectory, Evaluation, Checkpoint, JobEvent, JobTag, Attempt):
        session.execute(delete(table).where(table.job_id == job_id))
    return list(prefixes)


def num_by_status(session: Session) -> dict[str, int]:
    """All owners' jobs, counted by status."""
    query = select(Job.status, func.count().label("num_jobs")).where(Job.deleted_at.is_(None)).group_by(Job.status)
    return {row.status: row.num_jobs for row in session.execute(query)}


def oldest_waiting(session: Session) -> datetime | None:
    """When the job that waits longest was made."""
    return session.scalar(
        select(Job.created_at).where(Job.status == JobStatus.QUEUED, Job.deleted_at.is_(None)).order_by(Job.id).limit(1)
    )
