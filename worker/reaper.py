"""Recovery: jobs of lost workers are queued again, connections of frozen writers are ended, and lost doorbells are sent
again. The retention policy is applied at the same turns.

Every worker has this thread, which also renews the worker's row. One of them, the leader, does the rest. Jobs with a
valid lease are never touched.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from contract.database import Database, DatabaseNow
from contract.job_state import LEASED_STATUSES, JobStatus
from contract.retention import policy_of
from contract.tables import Job, LeaderLease, Worker
from worker import leftovers
from worker.attempt import Slot
from worker.failures import AttemptEnd, EndKind, Failure
from worker.lease import end_attempt, lock_expired
from worker.machine_check import device_kind, offer_of
from worker.metrics import ATTEMPTS
from worker.periodic import Periodic
from worker.retention import Retention

logger = logging.getLogger(__name__)

LEADER_NAME = "reaper"
MISSED_TURNS = 3
"""Another worker becomes the leader after the leader has missed this many turns."""

Ring = Callable[[str, str], None]
"""Sends a job's id to a queue unless a message waits there already."""


def lead(session: Session, owner: str, *, lease_seconds: float) -> bool:
    """Become or remain the leader; return False if another worker is.

    Looks before it writes: otherwise every turn of every worker would wait for the lock of this one row.
    """
    of_another = select(LeaderLease.name).where(LeaderLease.name == LEADER_NAME, LeaderLease.owner != owner)
    if session.scalar(of_another.where(LeaderLease.expires_at >= DatabaseNow())) is not None:
        return False
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    mine = {"owner": owner, "expires_at": DatabaseNow(lease_seconds)}
    statement = dialect.insert(LeaderLease).values(name=LEADER_NAME, **mine)
    statement = statement.on_conflict_do_update(
        index_elements=["name"],
        set_=mine,
        where=(LeaderLease.owner == owner) | (LeaderLease.expires_at < DatabaseNow()),
    )
    return session.execute(statement.returning(LeaderLease.name)).one_or_none() is not None


def announce(session: Session, slot: Slot) -> None:
    """Renew this worker's row, with what it offers and what its checks found."""
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    mine = {
        "queues": list(slot.settings.queues),
        "device_kind": device_kind(slot),
        "offer": offer_of(slot).model_dump(mode="json", exclude={"queues"}),
        "findings": slot.findings,
        "started_at": slot.started_at,
        "expires_at": DatabaseNow(MISSED_TURNS * slot.settings.reaper_seconds),
    }
    statement = dialect.insert(Worker).values(name=slot.name, **mine)
    session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=mine))


def reap(database: Database, *, max_attempts: int) -> list[str]:
    """End the attempts whose leases have expired, each in its own transaction; return their jobs' ids.

    If one cannot be ended this is logged, and the others are still ended.
    """
    with database.read() as session:
        expired = select(Job.id).where(Job.status.in_(LEASED_STATUSES), Job.lease_expires_at < DatabaseNow())
        candidates = list(session.scalars(expired.order_by(Job.lease_expires_at)))
    return [job_id for job_id in candidates if _reap_one(database, job_id, max_attempts=max_attempts)]


def _reap_one(database: Database, job_id: str, *, max_attempts: int) -> bool:
    lost = AttemptEnd(EndKind.LOST, failure=Failure("worker_lost", "The worker stopped renewing its lease."))
    try:
        with database.write() as session:
            job = lock_expired(session, job_id)
            if job is None:
                return False
            status = end_attempt(session, job, lost, max_attempts=max_attempts)
    except Exception:
        logger.exception("the lost attempt of %s cannot be ended", job_id, extra={"job_id": job_id})
        return False
    ATTEMPTS.labels(EndKind.LOST, "worker_lost").inc()
    ids = {"job_id": job_id, "attempt": job.attempt}
    logger.warning("attempt %d of %s is lost; the job is %s", job.attempt, job_id, status, extra=ids)
    return True


def first_waiting(session: Session, *, waited_seconds: float) -> Sequence[tuple[str, str]]:
    """Return one job per queue in which a job has waited this long, with its queue: one message wakes a worker.

    The worker claims whichever job is first, so any waiting job will do: the first in the index's order takes two short
    index lookups per queue, however many jobs wait.
    """
    waiting = select(Job.queue).where(Job.status == JobStatus.QUEUED).order_by(Job.status, Job.queue).limit(1)
    for_long = select(Job.id).where(Job.status == JobStatus.QUEUED, Job.created_at < DatabaseNow(-waited_seconds))
    found = []
    queue = session.scalar(waiting)
    while queue is not None:
        job_id = session.scalar(for_long.where(Job.queue == queue).order_by(Job.priority.desc(), Job.id).limit(1))
        if job_id is not None:
            found.append((job_id, queue))
        queue = session.scalar(waiting.where(Job.queue > queue))
    return found


class Reaper:
    """The reaper's turns, and the time of its last doorbells."""

    def __init__(self, slot: Slot, ring: Ring) -> None:
        self._slot = slot
        self._ring = ring
        self._rang_at = time.monotonic()
        self._retention = Retention(slot.database, slot.storage, policy_of(slot.settings))

    def turn(self) -> None:
        """Reap, send doorbells and apply the retention policy if this worker is the leader."""
        settings = self._slot.settings
        with self._slot.database.write() as session:
            announce(session, self._slot)
            if not lead(session, self._slot.name, lease_seconds=MISSED_TURNS * settings.reaper_seconds):
                return
            session.execute(delete(Worker).where(Worker.expires_at < DatabaseNow()))
        if num_ended := self._slot.database.end_frozen_writers():
            logger.warning("ended %d connections of processes that have stopped within a transaction", num_ended)
        for job_id in reap(self._slot.database, max_attempts=settings.max_attempts):
            leftovers.collect_of_ended(self._slot.database, self._slot.storage, job_id)
        if time.monotonic() - self._rang_at >= settings.ring_seconds:
            self._rang_at = time.monotonic()
            with self._slot.database.read() as session:
                waiting = first_waiting(session, waited_seconds=settings.ring_seconds)
            for job_id, queue in waiting:
                self._ring(job_id, queue)
        self._retention.turn()


def make_reaper(slot: Slot, ring: Ring) -> Periodic:
    """Return the worker's reaper thread."""
    reaper = Reaper(slot, ring)
    return slot.repeat("reaper", reaper.turn, slot.settings.reaper_seconds)
