"""Queries on ``jobs``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Integer,
    ScalarSelect,
    Select,
    SQLColumnExpression,
    String,
    Table,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy.orm import Session, aliased

from contract.events import INSERT_EVENTS, NewEvent, event_rows
from contract.ids import JOB_PREFIX, first_id
from contract.job_state import FINAL_STATUSES, JobStatus
from contract.tables import (
    Attempt,
    Checkpoint,
    Diagnosis,
    Evaluation,
    Job,
    JobEvent,
    JobTag,
    MetricPoint,
    ProbeSample,
    Trajectory,
)


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


_FIND = select(Job).where(Job.id == bindparam("job_id"), Job.owner == bindparam("owner"), Job.deleted_at.is_(None))
_FIND_AND_LOCK = _FIND.with_for_update()


def find(session: Session, owner: str, job_id: str, *, for_update: bool = False) -> Job | None:
    """The owner's job, locked until the transaction's end where asked for."""
    return session.scalar(_FIND_AND_LOCK if for_update else _FIND, {"job_id": job_id, "owner": owner})


def by_idempotency_key(session: Session, owner: str, key: str) -> Job | None:
    """The job that was made under the key."""
    return session.scalar(select(Job).where(Job.owner == owner, Job.idempotency_key == key))


def newest_with_body(
    session: Session, owner: str, body_sha256: str, since: datetime, *, is_made_by_retry: bool = False
) -> Job | None:
    """The newest job since then that was asked for in the same words; with `is_made_by_retry` by a repeated request."""
    recent = select(Job).where(Job.owner == owner, Job.id >= first_id(JOB_PREFIX, since), Job.deleted_at.is_(None))
    if is_made_by_retry:
        recent = recent.where(Job.made_by_retry.is_(True))
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


# Statements of every request are built once: building one takes longer than running it. And they are few: a
# statement costs more on its way to the database than in it.
_MOST = bindparam("most", type_=Integer)
_Other = aliased(Job)


def _num_of(found: Select[str]) -> ScalarSelect[int]:
    return select(func.count()).select_from(found.subquery()).scalar_subquery()


def _position(
    queue: SQLColumnExpression[str], priority: SQLColumnExpression[int], job_id: SQLColumnExpression[str]
) -> ColumnElement[int]:
    """How many jobs are claimed before one of these values, itself included; each count stops at `_MOST`."""
    waiting = select(_Other.id).where(_Other.status == JobStatus.QUEUED, _Other.queue == queue).limit(_MOST)
    # The order is that of the index: without it PostgreSQL, while it has no statistics, takes another one and reads
    # every job that waits.
    waiting = waiting.correlate(Job).order_by(_Other.priority, _Other.id)
    more_urgent = waiting.where(_Other.priority > priority)
    older = waiting.where(_Other.priority == priority, _Other.id < job_id)
    return 1 + _num_of(more_urgent) + _num_of(older)


_PLACE = case((Job.status == JobStatus.QUEUED, _position(Job.queue, Job.priority, Job.id)), else_=None)
_FIND_PLACED = _FIND.add_columns(_PLACE)
_OPEN = [status for status in JobStatus if status not in FINAL_STATUSES]
_PLACES = select(Job.id, _PLACE).where(Job.id.in_(bindparam("job_ids", expanding=True)))


def find_placed(session: Session, owner: str, job_id: str, most: int) -> tuple[Job, int | None] | None:
    """The owner's job and where it stands in its queue, None unless it waits; counting stops at `most`."""
    values = {"job_id": job_id, "owner": owner, "most": most}
    found = session.execute(_FIND_PLACED, values).one_or_none()
    return None if found is None else (found[0], _capped(found[1], most))


def positions(session: Session, job_ids: Collection[str], most: int) -> dict[str, int | None]:
    """Where each job stands in its queue, None unless it waits; counting stops at `most`."""
    rows = session.execute(_PLACES, {"job_ids": list(job_ids), "most": most})
    return {job_id: _capped(position, most) for job_id, position in rows}


def _capped(position: int | None, most: int) -> int | None:
    return None if position is None else min(position, most)


_JOBS, _TAGS = cast(Table, Job.__table__), cast(Table, JobTag.__table__)
_INSERT_JOB, _INSERT_TAGS = insert(_JOBS), insert(_TAGS)


def _num_open_of(owner: ColumnElement[str]) -> ScalarSelect[int]:
    # Written out: a list of values would be expanded each time.
    statuses: list[ColumnElement[str]] = [literal_column(f"'{status}'") for status in _OPEN]
    return _num_of(select(Job.id).where(Job.owner == owner, Job.status.in_(statuses)).limit(_MOST_OPEN))


_MOST_OPEN = bindparam("most_open", type_=Integer)
_OWNER, _QUEUE, _JOB_ID = (bindparam(name, type_=String) for name in ("owner", "queue", "job_id"))
_NUM_OPEN = select(_num_open_of(_OWNER))
_PLACE_OF_NEW = select(_num_open_of(_OWNER), _position(_QUEUE, bindparam("priority", type_=Integer), _JOB_ID))


def place_of_new(session: Session, job: Job, *, most_open: int, most: int) -> tuple[int, int]:
    """Return how many jobs of the owner wait or run, and the position that the new job would have in its queue.

    Counting stops at `most_open` and at `most`.
    """
    values = {"owner": job.owner, "queue": job.queue, "priority": job.priority, "job_id": job.id}
    found = session.connection().execute(_PLACE_OF_NEW, {**values, "most_open": most_open, "most": most}).one()
    return found[0], min(found[1], most)


def add(session: Session, job: dict[str, Any], tags: Collection[str], events: Sequence[NewEvent]) -> None:
    """Store a new job with its tags and first events; raise IntegrityError if its idempotency key is taken."""
    connection = session.connection()
    connection.execute(_INSERT_JOB, job)
    rows = event_rows(job["id"], 0, events)
    connection.execute(INSERT_EVENTS, rows if len(rows) > 1 else rows[0])  # a list of one is sent as a batch, slowly
    if tags:
        connection.execute(_INSERT_TAGS, [{"job_id": job["id"], "tag": tag} for tag in dict.fromkeys(tags)])


def num_open(session: Session, owner: str, most: int) -> int:
    """Return how many jobs of the owner wait or run; counting stops at `most`."""
    return session.scalar(_NUM_OPEN, {"owner": owner, "most_open": most}) or 0


def deleted_among(session: Session, job_ids: Collection[str]) -> Sequence[str]:
    """Those of the jobs, of any owner, that were deleted."""
    return session.scalars(select(Job.id).where(Job.id.in_(job_ids), Job.deleted_at.is_not(None))).all()


def remove_records(session: Session, job_id: str) -> None:
    """Forget what a job's run produced."""
    for table in (MetricPoint, Trajectory, Evaluation, Diagnosis, ProbeSample, Checkpoint, JobEvent, JobTag, Attempt):
        session.execute(delete(table).where(table.job_id == job_id))


def num_by_status(session: Session) -> dict[str, int]:
    """All owners' jobs, counted by status."""
    query = select(Job.status, func.count().label("num_jobs")).where(Job.deleted_at.is_(None)).group_by(Job.status)
    return {row.status: row.num_jobs for row in session.execute(query)}


def oldest_waiting(session: Session) -> datetime | None:
    """When the job that waits longest was made."""
    return session.scalar(
        select(Job.created_at).where(Job.status == JobStatus.QUEUED, Job.deleted_at.is_(None)).order_by(Job.id).limit(1)
    )
