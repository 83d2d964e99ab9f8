"""Queries on ``jobs``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate, starmap
from typing import Annotated, Any, NamedTuple, cast

from pydantic import Field
from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Integer,
    Row,
    ScalarSelect,
    Select,
    SQLColumnExpression,
    String,
    Table,
    bindparam,
    case,
    column,
    delete,
    func,
    insert,
    lambda_stmt,
    literal_column,
    select,
)
from sqlalchemy.orm import Session, aliased

from contract.events import INSERT_EVENTS, NewEvent, event_rows
from contract.ids import JOB_PREFIX, first_id
from contract.job_spec import Mode
from contract.job_state import FINAL_STATUSES, LEASED_STATUSES, JobStatus
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
    WebhookDelivery,
    Worker,
)
from service.audit.log import INSERT_ENTRY
from service.datasets.repository import SIZES_AND_KEEP, Size, sizes_of
from service.query import Moment, PageQuery


class JobQuery(PageQuery):
    """Which jobs of an owner to list."""

    status: list[JobStatus] = []  # noqa: RUF012 - pydantic copies it
    """Any of these."""
    mode: Mode | None = None
    tag: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """A part of the name, in upper or lower case."""
    created_after: Moment | None = None
    """Inclusive."""
    created_before: Moment | None = None
    """Exclusive."""


_FIND = select(Job).where(Job.id == bindparam("job_id"), Job.owner == bindparam("owner"), Job.deleted_at.is_(None))
_FIND_AND_LOCK = _FIND.with_for_update()


def find(session: Session, owner: str, job_id: str, *, for_update: bool = False) -> Job | None:
    """Return the owner's job; `for_update` locks it until the transaction ends."""
    return session.scalar(_FIND_AND_LOCK if for_update else _FIND, {"job_id": job_id, "owner": owner})


def by_idempotency_key(session: Session, owner: str, key: str) -> Job | None:
    """Return the job that was created with the key."""
    return session.scalar(select(Job).where(Job.owner == owner, Job.idempotency_key == key))


def newest_with_body(
    session: Session, owner: str, body_sha256: str, since: datetime, *, is_made_by_retry: bool = False
) -> Job | None:
    """Return the newest job since then with this body hash; `is_made_by_retry` accepts only jobs of retries."""
    recent = select(Job).where(Job.owner == owner, Job.id >= first_id(JOB_PREFIX, since), Job.deleted_at.is_(None))
    if is_made_by_retry:
        recent = recent.where(Job.made_by_retry.is_(True))
    return session.scalar(recent.where(Job.body_sha256 == body_sha256).order_by(Job.id.desc()).limit(1))


MAX_PAGE_BYTES = 2**24
"""Bytes of the specs of one page: a hundred specs of a megabyte would take a gigabyte. One job always fits."""


def page(session: Session, owner: str, wanted: JobQuery, metadata: Mapping[str, str]) -> tuple[Sequence[Job], bool]:
    """Return jobs of the owner, newest first, up to the limit or `MAX_PAGE_BYTES`, and whether more follow.

    `metadata`: pairs that the job's own metadata hold, all of them. No index helps here. Keys have no quotes and
    backslashes: SQLite writes them into a path.
    """
    query = _filtered(select(Job.id, Job.spec_bytes).where(Job.owner == owner, Job.deleted_at.is_(None)), wanted)
    if wanted.after is not None:
        query = query.where(Job.id < wanted.after)
    for key, value in metadata.items():
        query = query.where(Job.spec["metadata"][key].as_string() == value)
    found = session.execute(query.order_by(Job.id.desc()).limit(wanted.limit + 1)).all()
    sums = accumulate(row.spec_bytes for row in found[: wanted.limit])
    num_fitting = max(1, sum(num_bytes <= MAX_PAGE_BYTES for num_bytes in sums))
    ids = [row.id for row in found[:num_fitting]]
    jobs = session.scalars(select(Job).where(Job.id.in_(ids)).order_by(Job.id.desc())).all() if ids else []
    return jobs, len(found) > len(ids)


def _filtered(query: Select[str, int], wanted: JobQuery) -> Select[str, int]:
    """Apply the filters. Ids begin with the time of creation: a range of time is a range of the index on them."""
    if wanted.status:
        query = query.where(Job.status.in_(wanted.status))
    if wanted.mode is not None:
        query = query.where(Job.mode == wanted.mode)
    if wanted.tag is not None:
        query = query.where(Job.id.in_(select(JobTag.job_id).where(JobTag.tag == wanted.tag)))
    if wanted.name is not None:
        query = query.where(Job.name.icontains(wanted.name, autoescape=True))
    if wanted.created_after is not None:
        query = query.where(Job.id >= first_id(JOB_PREFIX, wanted.created_after))
        query = query.where(Job.created_at >= wanted.created_after)
    if wanted.created_before is not None:
        query = query.where(Job.id < first_id(JOB_PREFIX, wanted.created_before + timedelta(milliseconds=1)))
        query = query.where(Job.created_at < wanted.created_before)
    return query


# The statements of every request are built once, since that takes longer than running them, and are few, since each
# costs more on its way to the database than in it. `lambda_stmt` also keeps their cache keys, which take 0.1 to 0.2 ms
# to compute at each execution; its cache goes by the place in the source, so no two statements may share a lambda.
_MOST = bindparam("most", type_=Integer)
_Other = aliased(Job)


def _num_of(found: Select[str]) -> ScalarSelect[int]:
    return select(func.count()).select_from(found.subquery()).scalar_subquery()


def _position(
    queue: SQLColumnExpression[str], priority: SQLColumnExpression[int], job_id: SQLColumnExpression[str]
) -> ColumnElement[int]:
    """Return the position of a job with these values in its queue, from 1; each count stops at `_MOST`."""
    waiting = select(_Other.id).where(_Other.status == JobStatus.QUEUED, _Other.queue == queue).limit(_MOST)
    # The order is that of the index: without it PostgreSQL, while it has no statistics, takes another one and reads
    # every job that waits.
    waiting = waiting.correlate(Job).order_by(_Other.priority.desc(), _Other.id)
    more_urgent = waiting.where(_Other.priority > priority)
    older = waiting.where(_Other.priority == priority, _Other.id < job_id)
    return 1 + _num_of(more_urgent) + _num_of(older)


_PLACE = case((Job.status == JobStatus.QUEUED, _position(Job.queue, Job.priority, Job.id)), else_=None)
_FIND_PLACED = lambda_stmt(lambda: _FIND.add_columns(_PLACE), enable_tracking=False)
_OPEN = [status for status in JobStatus if status not in FINAL_STATUSES]
_PLACES = select(Job.id, _PLACE).where(Job.id.in_(bindparam("job_ids", expanding=True)))


def find_placed(session: Session, owner: str, job_id: str, most: int) -> tuple[Job, int | None] | None:
    """Return the owner's job and its queue position, None unless it waits; counting stops at `most`."""
    values = {"job_id": job_id, "owner": owner, "most": most}
    found = session.execute(_FIND_PLACED, values).one_or_none()
    return None if found is None else (found[0], _capped(found[1], most))


def positions(session: Session, job_ids: Collection[str], most: int) -> dict[str, int | None]:
    """Return each job's queue position, None unless it waits; counting stops at `most`."""
    rows = session.execute(_PLACES, {"job_ids": list(job_ids), "most": most})
    return {job_id: _capped(position, most) for job_id, position in rows}


def _capped(position: int | None, most: int) -> int | None:
    return None if position is None else min(position, most)


_JOBS, _TAGS = cast(Table, Job.__table__), cast(Table, JobTag.__table__)
_INSERT_JOB, _INSERT_TAGS = insert(_JOBS), insert(_TAGS)
_NEW_JOB = [
    *("id", "owner", "name", "mode", "spec", "requested", "spec_bytes", "idempotency_key", "body_sha256"),
    *("cloned_from", "made_by_retry", "origin", "created_at", "status", "queue", "priority", "needs", "attempt"),
    *("num_lost", "lease_token", "step", "latest_metrics", "notices", "num_events"),
]
"""Columns that a new job fills; the others are NULL."""


def _insert_all() -> Select[Any]:
    """Build PostgreSQL's statement that stores a job with its events, its tags and an entry of the audit log."""
    job_id, at = bindparam("id", type_=String), bindparam("created_at", type_=_JOBS.c.created_at.type)
    job = insert(_JOBS).values({name: bindparam(name, type_=_JOBS.c[name].type) for name in _NEW_JOB})
    kinds = {"sequence": Integer, "type": String, "level": String, "message": String, "data": JSON}
    given = func.json_to_recordset(bindparam("events", type_=JSON))
    event = given.table_valued(*starmap(column, kinds.items())).render_derived("event", with_types=True)
    events = INSERT_EVENTS.from_select(["job_id", *kinds, "created_at"], select(job_id, *event.c, at))
    listed = func.json_array_elements_text(bindparam("tags", type_=JSON))
    tag = listed.table_valued(column("tag", String)).render_derived("tag")
    tags = insert(_TAGS).from_select(["job_id", "tag"], select(job_id, tag.c.tag))
    logged = INSERT_ENTRY.values({c.name: bindparam(f"entry_{c.name}", type_=c.type) for c in INSERT_ENTRY.table.c})
    return select(literal_column("1")).add_cte(*(part.cte() for part in (job, events, tags, logged)))


_INSERT_ALL = lambda_stmt(lambda: _insert_all(), enable_tracking=False)


def _num_open_of(owner: ColumnElement[str]) -> ScalarSelect[int]:
    # Written out: a list of values would be expanded each time.
    statuses: list[ColumnElement[str]] = [literal_column(f"'{status}'") for status in _OPEN]
    return _num_of(select(Job.id).where(Job.owner == owner, Job.status.in_(statuses)).limit(_MOST_OPEN))


_MOST_OPEN = bindparam("most_open", type_=Integer)
_OWNER, _QUEUE, _JOB_ID = (bindparam(name, type_=String) for name in ("owner", "queue", "job_id"))
_NUM_OPEN = select(_num_open_of(_OWNER))
_PLACE_OF_NEW = (_num_open_of(_OWNER), _position(_QUEUE, bindparam("priority", type_=Integer), _JOB_ID))
_LOOK_WITH_UPLOADS = lambda_stmt(lambda: SIZES_AND_KEEP.add_columns(*_PLACE_OF_NEW), enable_tracking=False)
_LOOK = lambda_stmt(lambda: select(*_PLACE_OF_NEW), enable_tracking=False)


class AdmissionState(NamedTuple):
    """What decides whether a new job may be stored."""

    sizes: dict[str, Size]
    """Sizes of the named datasets that exist, which nobody can delete until the transaction ends."""
    num_open: int
    """Jobs of the owner that wait or run; counting stops at the limit."""
    position: int
    """Position that the new job would have in its queue."""


def admission_state(
    connection: Connection, job: Job, uploads: Sequence[str], *, most_open: int, most: int
) -> AdmissionState:
    """Return what decides about a new job that names up to two uploaded datasets, in one statement.

    The counts are 0 if none of the named datasets exists: the job is refused whatever they are.
    """
    values = {"owner": job.owner, "queue": job.queue, "priority": job.priority, "job_id": job.id}
    values |= {"most_open": most_open, "most": most}
    if not uploads:
        num_open, position = connection.execute(_LOOK, values).one()
        return AdmissionState({}, num_open, min(position, most))
    values |= {"first": uploads[0], "second": uploads[-1]}
    rows = connection.execute(_LOOK_WITH_UPLOADS, values).all()
    num_open, position = rows[0][5:] if rows else (0, 0)
    return AdmissionState(sizes_of(rows), num_open, min(position, most))


def add(
    connection: Connection,
    job: dict[str, Any],
    tags: Collection[str],
    events: Sequence[NewEvent],
    entry: Mapping[str, Any],
) -> None:
    """Store a new job with its tags, its first events and the entry of the audit log; raise IntegrityError if its
    idempotency key is taken."""
    names = list(dict.fromkeys(tags))
    rows = event_rows(job["id"], 0, events)
    if connection.dialect.name == "postgresql":  # one round trip instead of four
        for row in rows:
            del row["created_at"]  # the job's
        logged = {f"entry_{name}": value for name, value in entry.items()}
        connection.execute(_INSERT_ALL, {**job, "events": rows, "tags": names, **logged})
        return
    connection.execute(_INSERT_JOB, job)
    connection.execute(INSERT_EVENTS, rows)
    connection.execute(INSERT_ENTRY, entry)
    if names:
        connection.execute(_INSERT_TAGS, [{"job_id": job["id"], "tag": name} for name in names])


def num_open(session: Session, owner: str, most: int) -> int:
    """Return how many jobs of the owner wait or run; counting stops at `most`."""
    return session.scalar(_NUM_OPEN, {"owner": owner, "most_open": most}) or 0


def num_spec_bytes(connection: Connection, owner: str) -> int:
    """Return the bytes of the specs of all jobs of the owner."""
    query = select(func.sum(Job.spec_bytes)).where(Job.owner == owner, Job.deleted_at.is_(None))
    return int(connection.scalar(query) or 0)


def deleted_among(session: Session, job_ids: Collection[str]) -> Sequence[str]:
    """Return those of the jobs, of any owner, that were deleted."""
    return session.scalars(select(Job.id).where(Job.id.in_(job_ids), Job.deleted_at.is_not(None))).all()


def remove_records(session: Session, job: Job) -> None:
    """Delete the records of a job's run, and its spec."""
    job.spec, job.requested, job.notices, job.spec_bytes = {}, None, None, 0
    of_run = (MetricPoint, Trajectory, Evaluation, Diagnosis, ProbeSample, Checkpoint)
    for table in (*of_run, JobEvent, JobTag, Attempt, WebhookDelivery):
        session.execute(delete(table).where(table.job_id == job.id))


def num_by_status(session: Session) -> dict[str, int]:
    """Return the number of jobs of all owners by status."""
    query = select(Job.status, func.count().label("num_jobs")).where(Job.deleted_at.is_(None)).group_by(Job.status)
    return {row.status: row.num_jobs for row in session.execute(query)}


def live_workers(session: Session) -> list[Worker]:
    """Return the workers that have renewed their rows lately, the newest first."""
    living = select(Worker).where(Worker.expires_at > datetime.now(UTC))
    return list(session.scalars(living.order_by(Worker.started_at.desc(), Worker.name)))


def queues_of_silent_workers(session: Session) -> Sequence[str]:
    """Return the queues from which workers hold jobs and that have no row: those of early versions."""
    now = datetime.now(UTC)
    held = select(Job.queue).where(Job.status.in_(LEASED_STATUSES), Job.lease_expires_at > now)
    announced = select(Worker.name).where(Worker.name == Job.lease_owner, Worker.expires_at > now)
    return session.scalars(held.where(~announced.exists()).distinct()).all()


def open_by_queue(session: Session) -> Sequence[Row[str, str, int, str]]:
    """Return (queue, status, num_jobs, first_id) of the jobs of all owners that are not over, from an index alone: rows
    hold large specs. An open job is never a deleted one."""
    columns = (Job.queue, Job.status, func.count().label("num_jobs"), func.min(Job.id).label("first_id"))
    query = select(*columns).where(Job.status.in_([*LEASED_STATUSES, JobStatus.QUEUED]))
    return session.execute(query.group_by(Job.queue, Job.status)).all()


def leased(session: Session, owner: str | None, limit: int) -> Sequence[Job]:
    """Return the jobs that workers hold, of one owner or of all, the oldest first."""
    query = select(Job).where(Job.status.in_(LEASED_STATUSES), Job.deleted_at.is_(None))
    if owner is not None:
        query = query.where(Job.owner == owner)
    return session.scalars(query.order_by(Job.id).limit(limit)).all()
