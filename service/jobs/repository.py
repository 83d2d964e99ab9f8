"""Queries on ``jobs``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import starmap
from typing import Any, NamedTuple, cast

from sqlalchemy import (
    JSON,
    Boolean,
    ColumnElement,
    Connection,
    Integer,
    ScalarSelect,
    Select,
    SQLColumnExpression,
    String,
    Subquery,
    Table,
    and_,
    bindparam,
    case,
    column,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    true,
)
from sqlalchemy.orm import Session, aliased

from contract.events import INSERT_EVENTS, NewEvent, event_rows
from contract.ids import JOB_PREFIX, first_id
from contract.job_state import FINAL_STATUSES, JobStatus
from contract.tables import (
    Attempt,
    Checkpoint,
    Dataset,
    Diagnosis,
    Evaluation,
    Job,
    JobEvent,
    JobTag,
    MetricPoint,
    ProbeSample,
    Trajectory,
)
from service.datasets.repository import Size


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


def wait_for_like_requests(session: Session, owner: str, words: str) -> None:
    """Be alone, until the transaction's end, with requests of the owner in these words; what the statements after it
    see is what those before stored. On SQLite every writing transaction is alone."""
    if session.get_bind().dialect.name == "postgresql":
        digest = func.hashtextextended(f"{owner} {words}", 0)
        session.execute(select(func.pg_advisory_xact_lock(digest)))


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
_INSERT = insert(_JOBS)
_NEW_JOB = [
    *("id", "owner", "name", "mode", "spec", "requested", "idempotency_key", "body_sha256", "cloned_from"),
    "made_by_retry",
    *("created_at", "status", "queue", "priority", "attempt", "num_lost", "lease_token", "step", "latest_metrics"),
    "num_events",
]
"""Columns that a new job fills; NULL stands in the others."""


@dataclass(frozen=True)
class Demands:
    """What must hold when a job is made."""

    max_open: int
    """The owner has fewer jobs that wait or run."""
    dataset: str | None = None
    """Id of an uploaded dataset, which is the owner's."""
    min_problems: int = 0
    """That it has."""
    needs_solutions: bool = False
    """Of all of its rows."""
    evaluation_dataset: str | None = None
    """The same owner's, too."""


class Placement(NamedTuple):
    """What became of a job that was to be made, and all that decided it."""

    num_problems: int | None
    """Of the dataset; None where there is no such one, or none is named."""
    has_solutions: bool | None
    num_evaluated: int | None
    """Of the dataset for evaluations."""
    evaluated_has_solutions: bool | None
    num_open: int
    """Jobs of the owner that wait or run, this one left out; not counted beyond the limit."""
    position: int
    """In its queue."""
    is_made: bool

    @property
    def size(self) -> Size | None:
        """Of the dataset."""
        return _size(self.num_problems, self.has_solutions)

    @property
    def evaluation_size(self) -> Size | None:
        """Of the dataset for evaluations."""
        return _size(self.num_evaluated, self.evaluated_has_solutions)


def _size(num_rows: int | None, has_solutions: bool | None) -> Size | None:
    return Size(num_rows, bool(has_solutions)) if num_rows is not None else None


def _named_dataset(dataset_id: ColumnElement[str], owner: ColumnElement[str]) -> Subquery:
    """One row, or none. Until the job is there, nobody deletes it: who is about to is waited for."""
    query = select(Dataset.num_rows, Dataset.has_solutions)
    query = query.where(Dataset.id == dataset_id, Dataset.owner == owner, Dataset.deleted_at.is_(None))
    return query.with_for_update(read=True, key_share=True).subquery()


def _look_around() -> Select[Any]:
    """All of `Placement`, with what is demanded as parameters."""
    dataset, evaluation_dataset = (bindparam(name, type_=String) for name in ("dataset", "evaluation_dataset"))
    min_problems, max_open = (bindparam(name, type_=Integer) for name in ("min_problems", "max_open"))
    needs_solutions = bindparam("needs_solutions", type_=Boolean)
    owner, queue, job_id = (bindparam(name, type_=String) for name in ("owner", "queue", "id"))
    data, evaluated = _named_dataset(dataset, owner), _named_dataset(evaluation_dataset, owner)
    # Written out: a list of values would be expanded each time.
    open_: list[ColumnElement[str]] = [literal_column(f"'{status}'") for status in _OPEN]
    num_open = _num_of(select(Job.id).where(Job.owner == owner, Job.status.in_(open_)).limit(max_open))
    facts = (
        select(
            data.c.num_rows.label("num_problems"),
            data.c.has_solutions,
            evaluated.c.num_rows.label("num_evaluated"),
            evaluated.c.has_solutions.label("evaluated_has_solutions"),
            num_open.label("num_open"),
            _position(queue, bindparam("priority", type_=Integer), job_id).label("position"),
        )
        .select_from(select(literal_column("1")).subquery())
        .outerjoin(data, true())
        .outerjoin(evaluated, true())
        .cte("facts")
        .prefix_with("MATERIALIZED", dialect="postgresql")  # else each mention counts anew
    )
    fits = and_(
        dataset.is_(None) | ((facts.c.num_problems >= min_problems) & (facts.c.has_solutions | ~needs_solutions)),
        evaluation_dataset.is_(None) | facts.c.num_evaluated.is_not(None),
        facts.c.num_open < max_open,
    )
    return select(*facts.c, func.coalesce(fits, literal_column("false")).label("is_made"))


_LOOK = _look_around()


def _look_and_place() -> Select[Any]:
    """`_LOOK`, and in the same statement, where all fits, a job and what belongs to it stored."""
    looked = _LOOK.cte("looked")
    stored = [bindparam(name, type_=_JOBS.c[name].type) for name in _NEW_JOB]
    job = insert(_JOBS).from_select(_NEW_JOB, select(*stored).where(looked.c.is_made))
    kinds = {"sequence": Integer, "type": String, "level": String, "message": String, "data": JSON}
    given = func.json_to_recordset(bindparam("events", type_=JSON))
    event = given.table_valued(*starmap(column, kinds.items())).render_derived("event", with_types=True)
    at = bindparam("created_at", type_=_JOBS.c.created_at.type)
    shown = select(stored[0], *event.c, at).select_from(looked.join(event, looked.c.is_made))
    events = INSERT_EVENTS.from_select(["job_id", *kinds, "created_at"], shown)
    listed = func.json_array_elements_text(bindparam("tags", type_=JSON))
    tag = listed.table_valued(column("tag", String)).render_derived("tag")
    tagged = select(stored[0], tag.c.tag).select_from(looked.join(tag, looked.c.is_made))
    tags = insert(_TAGS).from_select(["job_id", "tag"], tagged)
    parts = {"new_job": job, "new_events": events, "new_tags": tags}
    return select(*looked.c).add_cte(*(part.cte(name) for name, part in parts.items()))


_LOOK_AND_PLACE = _look_and_place()


def place(
    connection: Connection, job: Job, demands: Demands, tags: Collection[str], events: Sequence[NewEvent], *, most: int
) -> Placement:
    """Store a new job with its first events if all demands hold, else nothing; positions are counted to `most`.

    On PostgreSQL one statement does it all: nothing else is needed for a transaction. SQLite has no such
    statement, and no way to its server that would make several of them dear.
    Raises IntegrityError where the job's idempotency key is taken.
    """
    job.num_events = len(events)
    values = {name: getattr(job, name) for name in _NEW_JOB}
    rows = event_rows(job.id, 0, events)
    tagged = [{"job_id": job.id, "tag": tag} for tag in dict.fromkeys(tags)]
    asked = {**values, **vars(demands), "most": most}
    if connection.dialect.name == "postgresql":
        for row in rows:
            del row["created_at"]  # the job's
        asked |= {"events": rows, "tags": [row["tag"] for row in tagged]}
        found = connection.execute(_LOOK_AND_PLACE, asked).one()
    else:
        found = connection.execute(_LOOK, asked).one()
        if found.is_made:
            connection.execute(_INSERT, values)
            connection.execute(INSERT_EVENTS, rows if len(rows) > 1 else rows[0])
            if tagged:
                connection.execute(insert(_TAGS), tagged)
    return Placement(*found)._replace(position=min(found.position, most))


def num_open(session: Session, owner: str, most: int) -> int:
    """The owner's jobs that wait or run; counting stops at `most`."""
    open_ = select(Job.id).where(Job.owner == owner, Job.status.in_(_OPEN)).limit(most)
    return session.scalar(select(_num_of(open_))) or 0


def uses_dataset(session: Session, owner: str, dataset_id: str) -> str | None:
    """A job of the owner that is not over and names the dataset."""
    dataset = Job.spec["dataset"].as_string()
    evaluated = Job.spec["evaluation"]["dataset"].as_string()
    query = select(Job.id).where(Job.owner == owner, Job.status.in_(_OPEN))
    return session.scalar(query.where(or_(dataset == dataset_id, evaluated == dataset_id)).limit(1))


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
