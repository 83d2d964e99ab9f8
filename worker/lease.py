"""The lease of a job: claim, renew, the fence around every write, and its end.

The database's clock decides when a lease expires. Its token is the fence: every claim and every end increases it, so a
superseded attempt's write matches no row and raises `LeaseLostError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import (
    Case,
    ColumnElement,
    Row,
    Select,
    String,
    Text,
    and_,
    case,
    func,
    insert,
    literal,
    literal_column,
    select,
    union_all,
    update,
)
from sqlalchemy.orm import InstrumentedAttribute, Session

from contract.database import Database, DatabaseNow
from contract.error_codes import ERROR_CODES
from contract.events import Level, NewEvent, append_events
from contract.job_state import LEASED_STATUSES, AttemptStatus, JobStatus, Phase, assert_transition
from contract.routing import Needs, Offer, would_wait_for
from contract.tables import Attempt, Job
from worker.failures import MAX_MESSAGE_CHARACTERS, AttemptEnd, EndKind, FinalStatus, final_status

OUTAGE_WAITS_SECONDS = (60.0, 300.0)
"""Delay of the next attempt after the first and after each further attempt in a row that an outage ended. Without it, a
job would use up its attempts within one outage."""
# The condition of the index of kinds in its words: otherwise it would not be used.
_WAITS = and_(func.lower(Job.status) == literal_column(f"'{JobStatus.QUEUED}'"), Job.deleted_at.is_(None))
_OUTAGES = [entry.code for entry in ERROR_CODES.values() if entry.is_outage]


class LeaseLostError(Exception):
    """The job belongs to another attempt or to none: stop, and write nothing more."""


@dataclass(frozen=True)
class Lease:
    """The right of one attempt to write to its job."""

    job_id: str
    token: int
    attempt: int
    spec: dict[str, Any]
    """The resolved job spec."""
    origin: dict[str, Any] | None = None
    """Origin of the request that submitted the job; None for a job of an older version."""


WaitingJob = Row[str, str, str | None, int]
"""(id, queue, needs, priority) of a job."""


def claim(session: Session, offer: Offer, *, worker: str, lease_seconds: float) -> Lease | None:
    """Claim the first waiting job that the offer can run, by priority, then age; return None if none waits."""
    best: WaitingJob | None = None
    for first in _first_of_each_kind(session, offer):
        if best is not None and _place(best) < _place(first):
            break
        # If other workers are claiming the first of its kind, this is a later one, and another kind's may be before it.
        of_kind = _in_order().where(Job.queue == first.queue, Job.needs == first.needs)
        job = session.execute(of_kind.limit(1).with_for_update(skip_locked=True)).one_or_none()
        if job is not None and (best is None or _place(job) < _place(best)):
            best = job
    return None if best is None else _take(session, best.id, worker, lease_seconds)


def has_waiting(session: Session, offer: Offer) -> bool:
    """Return whether `claim` would find a job; takes no lock."""
    return bool(_first_of_each_kind(session, offer))


def _first_of_each_kind(session: Session, offer: Offer) -> list[WaitingJob]:
    """Return the first waiting job of each kind that the offer can run, in the order of claims; takes no lock.

    Jobs of one queue that need the same are of one kind. There are few kinds, however many jobs wait.
    """
    if not offer.queues:
        return []
    firsts = session.execute(_select_first_of_each_kind(offer.queues)).all()
    able = [job for job in firsts if job.id and would_wait_for(job.queue, Needs.read(job.needs), [offer]) is None]
    return sorted(able, key=_place)


@cache
def _select_first_of_each_kind(queues: Sequence[str]) -> Select[str, str, str | None, int]:
    """Build a statement that finds the next larger value of `needs` again and again, and the first job of each, by an
    index; the id is NULL if all jobs of a kind are delayed. No comparison finds NULL, for which '' stands."""
    served = union_all(*(select(literal(queue, String).label("queue")) for queue in queues)).subquery()
    kinds = select(served.c.queue, literal("", Text).label("needs")).cte("kinds", recursive=True)
    larger = select(Job.needs).where(_WAITS, Job.queue == kinds.c.queue, Job.needs > kinds.c.needs)
    following = larger.order_by(Job.needs).limit(1).correlate(kinds).scalar_subquery()
    kinds = kinds.union_all(select(kinds.c.queue, following).where(kinds.c.needs.is_not(None)))

    def first(column: InstrumentedAttribute[Any]) -> Case[Any]:
        of_kind = _in_order().with_only_columns(column).where(Job.queue == kinds.c.queue).limit(1).correlate(kinds)
        unknown = of_kind.where(Job.needs.is_(None)).scalar_subquery()
        return case((kinds.c.needs == "", unknown), else_=of_kind.where(Job.needs == kinds.c.needs).scalar_subquery())

    needs = func.nullif(kinds.c.needs, "")
    columns = (first(Job.id).label("id"), kinds.c.queue, needs.label("needs"), first(Job.priority).label("priority"))
    return select(*columns).where(kinds.c.needs.is_not(None))


def _in_order() -> Select[str, str, str | None, int]:
    jobs = select(Job.id, Job.queue, Job.needs, Job.priority).where(_WAITS, ~_is_delayed())
    # That of the index of kinds: without `needs` PostgreSQL may take another index and read every job that waits.
    return jobs.order_by(Job.needs, Job.priority.desc(), Job.id)


def _place(job: WaitingJob) -> tuple[int, str]:
    return -job.priority, job.id


def _take(session: Session, job_id: str, worker: str, lease_seconds: float) -> Lease:
    taken = session.execute(
        update(Job)
        .where(Job.id == job_id)
        .values(
            status=JobStatus.RUNNING,
            lease_owner=worker,
            lease_token=Job.lease_token + 1,
            lease_expires_at=DatabaseNow(lease_seconds),
            attempt=Job.attempt + 1,
            started_at=func.coalesce(Job.started_at, DatabaseNow()),
            phase=Phase.PREPARING,
            finished_at=None,
            error_code=None,
            error_message=None,
            error_retryable=None,
            error_hint=None,
        )
        .returning(Job.id, Job.lease_token, Job.attempt, Job.spec, Job.origin)
        .execution_options(synchronize_session=False)
    ).one()
    lease = Lease(taken.id, taken.lease_token, taken.attempt, taken.spec, taken.origin)
    _record_start(session, lease, worker)
    return lease


def _is_delayed() -> ColumnElement[bool]:
    first, further = (Attempt.finished_at > DatabaseNow(-seconds) for seconds in OUTAGE_WAITS_SECONDS)
    newest = select(Attempt.number).where(Attempt.job_id == Job.id, Attempt.number == Job.attempt)
    by_outage = newest.where(Attempt.error_code.in_(_OUTAGES), case((Job.num_lost > 1, further), else_=first))
    return and_(Job.num_lost > 0, by_outage.correlate(Job).exists())


def _record_start(session: Session, lease: Lease, worker: str) -> None:
    row = {
        "job_id": lease.job_id,
        "number": lease.attempt,
        "worker": worker,
        "lease_token": lease.token,
        "status": AttemptStatus.RUNNING,
    }
    session.execute(insert(Attempt).values(started_at=DatabaseNow(), **row))
    data = {"status": JobStatus.RUNNING, "attempt": lease.attempt, "worker": worker}
    append_events(session, lease.job_id, NewEvent("status", f"Attempt {lease.attempt} started.", data))


def renew(session: Session, lease: Lease, lease_seconds: float) -> JobStatus:
    """Extend the lease and return the job's status; raises `LeaseLostError`."""
    statement = (
        update(Job)
        .where(Job.id == lease.job_id, Job.lease_token == lease.token, Job.status.in_(LEASED_STATUSES))
        .values(lease_expires_at=DatabaseNow(lease_seconds))
        .returning(Job.status)
        .execution_options(synchronize_session=False)
    )
    status = session.execute(statement).scalar_one_or_none()
    if status is None:
        raise LeaseLostError(f"{lease.job_id}, attempt {lease.attempt}: the lease is no longer held")
    return JobStatus(status)


@contextmanager
def fenced(database: Database, lease: Lease) -> Iterator[Session]:
    """Open a transaction that writes for the attempt; raises `LeaseLostError` before anything is written.

    The job's row stays locked until the end, so that no other attempt can begin meanwhile.
    """
    with database.write() as session:
        _locked_job(session, lease)
        yield session


@dataclass(frozen=True)
class LockedJob:
    """A job's row that this transaction has locked in order to end its attempt."""

    id: str
    status: JobStatus
    attempt: int
    num_lost: int


def _locked_job(session: Session, lease: Lease) -> LockedJob:
    held = _lock_job(session, Job.id == lease.job_id, Job.lease_token == lease.token, Job.status.in_(LEASED_STATUSES))
    if held is None:
        raise LeaseLostError(f"{lease.job_id}, attempt {lease.attempt}: the lease is no longer held")
    return held


def lock_expired(session: Session, job_id: str) -> LockedJob | None:
    """Lock and return the job if its lease has expired and no other transaction holds it."""
    has_expired = Job.lease_expires_at < DatabaseNow()
    return _lock_job(session, Job.id == job_id, Job.status.in_(LEASED_STATUSES), has_expired, skip_locked=True)


def _lock_job(session: Session, *conditions: ColumnElement[bool], skip_locked: bool = False) -> LockedJob | None:
    columns = select(Job.id, Job.status, Job.attempt, Job.num_lost).where(*conditions)
    row = session.execute(columns.with_for_update(skip_locked=skip_locked)).one_or_none()
    return LockedJob(row.id, JobStatus(row.status), row.attempt, row.num_lost) if row is not None else None


def finish(database: Database, lease: Lease, end: AttemptEnd, *, max_attempts: int) -> JobStatus:
    """End the attempt and return its lease; raises `LeaseLostError` if it is no longer held."""
    with database.write() as session:
        return end_attempt(session, _locked_job(session, lease), end, max_attempts=max_attempts)


def end_attempt(session: Session, job: LockedJob, end: AttemptEnd, *, max_attempts: int) -> JobStatus:
    """Record how the attempt ended and decide the job's next status."""
    num_without_progress = _num_without_progress(session, job, end)
    final = final_status(job.status, end, num_without_progress=num_without_progress, max_attempts=max_attempts)
    assert_transition(job.status, final.status)
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == job.id, Attempt.number == job.attempt)
        .values(
            status=end.attempt_status,
            finished_at=DatabaseNow(),
            exit_code=end.exit_code,
            error_code=end.failure.code if end.failure else None,
            error_message=end.failure.message[:MAX_MESSAGE_CHARACTERS] if end.failure else None,
        )
        .execution_options(synchronize_session=False)
    )
    is_queued = final.status is JobStatus.QUEUED
    session.execute(
        update(Job)
        .where(Job.id == job.id)
        .values(
            status=final.status,
            lease_owner=None,
            lease_expires_at=None,
            lease_token=Job.lease_token + 1,
            # A failed or paused job that its user resumes starts with a new count.
            num_lost=num_without_progress if is_queued else 0,
            phase=None,
            phase_done=None,
            phase_total=None,
            eta_seconds=None,
            finished_at=DatabaseNow() if final.status.is_final else None,
            **_error_columns(final),
        )
        .execution_options(synchronize_session=False)
    )
    wait_seconds = _wait_seconds(end, num_without_progress) if is_queued else 0.0
    append_events(session, job.id, *end.circumstances, _status_event(job.attempt, end, final, wait_seconds))
    return final.status


def _wait_seconds(end: AttemptEnd, num_without_progress: int) -> float:
    """Return the delay that `_is_delayed` will apply."""
    is_outage = end.failure is not None and end.failure.known.is_outage
    return OUTAGE_WAITS_SECONDS[num_without_progress > 1] if is_outage and num_without_progress > 0 else 0.0


def _num_without_progress(session: Session, job: LockedJob, end: AttemptEnd) -> int:
    """Count the failed or lost attempts in a row that did not get further than any attempt before.

    Compared with the best attempt, not with the checkpoint that this one resumed from: otherwise a run that always
    fails before its next checkpoint would be retried forever.
    """
    steps = select(Attempt.number, func.coalesce(Attempt.last_step, 0).label("step")).where(Attempt.job_id == job.id)
    reached = {row.number: row.step for row in session.execute(steps)}
    last = reached.pop(job.attempt, 0)
    if last > max(reached.values(), default=0):
        return 0
    # Passes are halved until they fit or have one sequence each, which ends by itself.
    is_halved = end.failure is not None and end.failure.code == "passes_too_large"
    return job.num_lost + (end.kind in (EndKind.FAILED, EndKind.LOST) and not is_halved)


def _error_columns(final: FinalStatus) -> dict[str, Any]:
    if final.failure is None:
        return {}
    known = final.failure.known
    return {
        "error_code": known.code,
        "error_message": final.failure.message[:MAX_MESSAGE_CHARACTERS],
        "error_retryable": known.retryable,
        "error_hint": known.hint,
    }


_ENDINGS = {
    EndKind.FINISHED: "finished",
    EndKind.STOPPED: "stopped on request",
    EndKind.FAILED: "failed",
    EndKind.LOST: "was lost with a machine that stopped responding",
}

_CONSEQUENCES = {
    JobStatus.QUEUED: "the job is queued and resumes from its last checkpoint",
    JobStatus.PAUSED: "the job is paused",
    JobStatus.CANCELLED: "the job is cancelled",
    JobStatus.SUCCEEDED: "the job has succeeded",
    JobStatus.FAILED: "the job has failed",
}


def _status_event(attempt: int, end: AttemptEnd, final: FinalStatus, wait_seconds: float) -> NewEvent:
    delay = f" after at least {wait_seconds:.0f} s" if wait_seconds else ""
    message = f"Attempt {attempt} {_ENDINGS[end.kind]}; {_CONSEQUENCES[final.status]}{delay}."
    data: dict[str, Any] = {"status": final.status, "attempt": attempt}
    if wait_seconds:
        data["wait_seconds"] = wait_seconds
    if end.failure is not None:
        data["error"] = {"code": end.failure.code, "message": end.failure.message[:MAX_MESSAGE_CHARACTERS]}
    if end.summary is not None:
        data["summary"] = dict(end.summary)
    level: Level = "info" if end.failure is None else "warn"
    return NewEvent("status", message, data, "error" if final.status is JobStatus.FAILED else level)
