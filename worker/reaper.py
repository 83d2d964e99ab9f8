"""Recovery: what lost workers held is given back, and forgotten doorbells are rung again.

A thread of every worker, at work in one at a time. It touches no job whose lease is alive.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from contract.database import Database
from contract.job_state import LEASED_STATUSES, JobStatus
from contract.tables import Job, LeaderLease
from worker import leftovers
from worker.attempt import Slot
from worker.failures import AttemptEnd, EndKind, Failure
from worker.lease import DatabaseNow, end_attempt, lock_expired
from worker.periodic import Periodic
from worker.repository import schema_is_ready

logger = logging.getLogger(__name__)

LEADER_NAME = "reaper"
MISSED_TURNS = 3
"""A leader that has missed so many turns is succeeded."""

Ring = Callable[[str, str], None]
"""Sends a job's id to a queue, where no message waits there already."""


def lead(session: Session, owner: str, *, lease_seconds: float) -> bool:
    """Become or stay the one reaper at work; false where another is."""
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    mine = {"owner": owner, "expires_at": DatabaseNow(lease_seconds)}
    statement = dialect.insert(LeaderLease).values(name=LEADER_NAME, **mine)
    statement = statement.on_conflict_do_update(
        index_elements=["name"],
        set_=mine,
        where=(LeaderLease.owner == owner) | (LeaderLease.expires_at < DatabaseNow()),
    )
    return session.execute(statement.returning(LeaderLease.name)).one_or_none() is not None


def reap(database: Database, *, max_attempts: int) -> list[str]:
    """End the attempts whose leases have run out, each in a transaction of its own; returns their jobs' ids.

    One that cannot be ended is logged and does not keep the others, which come after it in every turn.
    """
    with database.read() as session:
        expired = select(Job.id).where(Job.status.in_(LEASED_STATUSES), Job.lease_expires_at < DatabaseNow())
        candidates = list(session.scalars(expired.order_by(Job.lease_expires_at)))
    return [job_id for job_id in candidates if _reap_one(database, job_id, max_attempts=max_attempts)]


def _reap_one(database: Database, job_id: str, *, max_attempts: int) -> bool:
    lost = AttemptEnd(EndKind.LOST, failure=Failure("worker_lost", "The worker stopped answering: its lease ran out."))
    try:
        with database.write() as session:
            job = lock_expired(session, job_id)
            if job is None:
                return False
            status = end_attempt(session, job, lost, max_attempts=max_attempts)
    except Exception:
        logger.exception("the lost attempt of %s cannot be ended", job_id)
        return False
    logger.warning("attempt %d of %s is lost; the job is %s", job.attempt, job_id, status)
    return True


def first_waiting(session: Session, *, waited_seconds: float) -> Sequence[tuple[str, str]]:
    """A job and its queue for each queue in which some job has waited so long: one bell wakes its worker.

    Which job is all the same to its worker, so that it is the first in the order of the index: two short looks into
    it a queue, however many jobs wait there.
    """
    waiting = select(Job.queue).where(Job.status == JobStatus.QUEUED).order_by(Job.status, Job.queue).limit(1)
    for_long = select(Job.id).where(Job.status == JobStatus.QUEUED, Job.created_at < DatabaseNow(-waited_seconds))
    found = []
    queue = session.scalar(waiting)
    while queue is not None:
        job_id = session.scalar(for_long.where(Job.queue == queue).order_by(Job.priority, Job.id).limit(1))
        if job_id is not None:
            found.append((job_id, queue))
        queue = session.scalar(waiting.where(Job.queue > queue))
    return found


class Reaper:
    """One turn of the reaper, and what it remembers between turns."""

    def __init__(self, slot: Slot, ring: Ring) -> None:
        self._slot = slot
        self._ring = ring
        self._rang_at = time.monotonic()

    def turn(self) -> None:
        """Reap and ring, if this worker leads."""
        settings = self._slot.settings
        with self._slot.database.write() as session:
            if not lead(session, self._slot.name, lease_seconds=MISSED_TURNS * settings.reaper_seconds):
                return
        for job_id in reap(self._slot.database, max_attempts=settings.max_attempts):
            leftovers.collect_of_ended(self._slot.database, self._slot.storage, job_id)
        if time.monotonic() - self._rang_at >= settings.ring_seconds:
            self._rang_at = time.monotonic()
            self._ring_again(settings.ring_seconds)

    def _ring_again(self, waited_seconds: float) -> None:
        with self._slot.database.read() as session:
            waiting = first_waiting(session, waited_seconds=waited_seconds)
        for job_id, queue in waiting:
            self._ring(job_id, queue)


def make_reaper(slot: Slot, ring: Ring) -> Periodic:
    """The worker's reaper thread."""
    reaper = Reaper(slot, ring)
    return Periodic(
        "reaper",
        reaper.turn,
        seconds=slot.settings.reaper_seconds,
        stopping=slot.stopping,
        ready=lambda: schema_is_ready(slot.database),
    )
