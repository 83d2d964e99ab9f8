"""Queries on jobs that ran and on those in front: what times are estimated from."""

from __future__ import annotations

from collections.abc import Collection
from itertools import starmap
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Integer, Select, String, bindparam, func, select, union_all
from sqlalchemy.orm import Session, aliased
from sqlalchemy.orm.util import AliasedClass

from contract.job_state import LEASED_STATUSES, JobStatus
from contract.tables import Dataset, Evaluation, Job, JobEvent, Trajectory

_Other = aliased(Job)


def _succeeded_at_once(job: type[Job] | AliasedClass[Job]) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions for jobs that succeeded in their first attempt. Sort by the status, too: only the index of
    owner, status and id has this order.

    Over an equality, PostgreSQL may walk the primary key backwards, past all jobs where the owner's seldom succeed.
    """
    is_succeeded = job.status.between(JobStatus.SUCCEEDED, JobStatus.SUCCEEDED)
    return is_succeeded, job.attempt == 1, job.deleted_at.is_(None)


def finished_at_once(session: Session, owner: str, limit: int) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Return (id, spec, data of the last event) of the owner's newest jobs that succeeded in their first attempt and
    whose trajectories can still be counted."""
    query = (
        select(Job.id, Job.spec, JobEvent.data)
        .join(JobEvent, (JobEvent.job_id == Job.id) & (JobEvent.sequence == Job.num_events))
        .where(Job.owner == owner, *_succeeded_at_once(Job), Job.trajectories_removed_before.is_(None))
    )
    rows = session.execute(query.order_by(Job.status.desc(), Job.id.desc()).limit(limit))
    return [(row.id, row.spec, row.data) for row in rows]


class SizedJob(NamedTuple):
    """A job and the numbers of rows of its uploaded datasets; None if it names none."""

    job: Job
    num_rows: int | None
    num_evaluation_rows: int | None


class PastJob(NamedTuple):
    """A job that succeeded, and the data of its last event."""

    sized: SizedJob
    data: dict[str, Any]


_Data, _Evaluated = aliased(Dataset), aliased(Dataset)
_SIZED = (
    select(Job, _Data.num_rows, _Evaluated.num_rows)
    .outerjoin(_Data, (_Data.id == Job.spec["dataset"].as_string()) & (_Data.owner == Job.owner))
    .outerjoin(
        _Evaluated,
        (_Evaluated.id == Job.spec["evaluation"]["dataset"].as_string()) & (_Evaluated.owner == Job.owner),
    )
)


def _any_of(*found: Select[str]) -> ColumnElement[bool]:
    """Combine the parts so that each uses its own index: over an `or` PostgreSQL would read all jobs of a status."""
    return Job.id.in_(union_all(*(select(part.subquery().c.id) for part in found)))


def _sized_queue() -> Select[Job, int, int]:
    queue, job_id = (bindparam(name, type_=String) for name in ("queue", "job_id"))
    priority = bindparam("priority", type_=Integer)
    here = select(_Other.id).where(_Other.queue == queue)
    waiting = here.where(_Other.status == JobStatus.QUEUED).limit(bindparam("max_before"))
    waiting = waiting.order_by(_Other.priority.desc(), _Other.id)  # as in `repository._position`
    more_urgent = waiting.where(_Other.priority > priority)
    older = waiting.where(_Other.priority == priority, _Other.id < job_id)
    leased = here.where(_Other.status.in_(LEASED_STATUSES)).limit(bindparam("max_leased"))
    itself = select(_Other.id).where(_Other.id == job_id)
    return _SIZED.where(_any_of(more_urgent, older, leased, itself)).order_by(Job.priority.desc(), Job.id)


_SIZED_QUEUE = _sized_queue()


def sized_queue(session: Session, job: Job, *, max_before: int, max_leased: int) -> list[SizedJob]:
    """Return this job, and all owners' jobs of its queue that run or wait before it, in the order of claims."""
    place = {"queue": job.queue, "priority": job.priority, "job_id": job.id}
    found = session.execute(_SIZED_QUEUE, {**place, "max_before": max_before, "max_leased": max_leased})
    return list(starmap(SizedJob, found))


def past_jobs(session: Session, owners: Collection[str], limit: int) -> list[PastJob]:
    """Return each owner's newest jobs that succeeded in their first attempt, newest first; about `limit` in all."""
    succeeded = select(_Other.id).where(*_succeeded_at_once(_Other))
    succeeded = succeeded.order_by(_Other.status.desc(), _Other.id.desc()).limit(max(1, limit // len(owners)))
    of_each = _any_of(*(succeeded.where(_Other.owner == owner) for owner in sorted(owners)))
    last = (JobEvent.job_id == Job.id) & (JobEvent.sequence == Job.num_events)
    query = _SIZED.add_columns(JobEvent.data).join(JobEvent, last).where(of_each)
    return [PastJob(SizedJob(*row[:3]), row[3]) for row in session.execute(query.order_by(Job.id.desc()))]


def work_done(session: Session, job_id: str) -> tuple[int, int, int]:
    """Return (trajectories, steps, evaluation samples) of a job's run."""
    num_trajectories = select(func.count()).where(Trajectory.job_id == job_id).scalar_subquery()
    samples = select(func.sum(Evaluation.num_problems * Evaluation.k)).where(Evaluation.job_id == job_id)
    query = select(num_trajectories, Job.step, func.coalesce(samples.scalar_subquery(), 0)).where(Job.id == job_id)
    found = session.execute(query).one()
    return int(found[0]), int(found[1]), int(found[2])
