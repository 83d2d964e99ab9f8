"""Queries on ``jobs``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Select, and_, delete, func, insert, or_, select
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


@dataclass(frozen=True)
class JobFilter:
    """Which jobs of an owner to list; None does not filter."""

    statuses: Collection[JobStatus] = ()
    mode: str | None = None
    tag: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


def add(session: Session, job: Job, tags: Collection[str]) -> None:
    """Store a new job; raises IntegrityError where its idempotency key is taken."""
    session.add(job)
    session.flush()
    if tags:
        session.execute(insert(JobTag), [{"job_id": job.id, "tag": tag} for tag in dict.fromkeys(tags)])


def find(session: Session, owner: str, job_id: str, *, for_update: bool = False) -> Job | None:
    """The owner's job, locked until the transaction's end where asked for."""
    query = select(Job).where(Job.id == job_id, Job.owner == owner, Job.deleted_at.is_(None))
    return session.scalar(query.with_for_update() if for_update else query)


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
    return query


def queue_position(session: Session, job: Job, most: int) -> int:
    """How many jobs are claimed before this one, itself included; counting stops at `most`."""
    is_before = or_(Job.priority > job.priority, and_(Job.priority == job.priority, Job.id < job.id))
    waiting = select(Job.id).where(Job.status == JobStatus.QUEUED, Job.queue == job.queue, is_before).limit(most - 1)
    return 1 + session.execute(select(func.count()).select_from(waiting.subquery())).scalar_one()


def num_open(session: Session, owner: str, most: int) -> int:
    """How many of the owner's jobs wait or run; counting stops at `most`."""
    statuses = [status for status in JobStatus if status not in FINAL_STATUSES]
    found = select(Job.id).where(Job.owner == owner, Job.status.in_(statuses)).limit(most)
    return session.execute(select(func.count()).select_from(found.subquery())).scalar_one()


def uses_dataset(session: Session, owner: str, dataset_id: str) -> str | None:
    """A job of the owner that is not over and names the dataset."""
    statuses = [status for status in JobStatus if status not in FINAL_STATUSES]
    dataset = Job.spec["dataset"].as_string()
    evaluated = Job.spec["evaluation"]["dataset"].as_string()
    query = select(Job.id).where(Job.owner == owner, Job.status.in_(statuses))
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
