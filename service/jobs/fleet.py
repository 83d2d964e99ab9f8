"""What waits and runs and what the live workers offer, over all owners: numbers for everybody, and single jobs for
admins and their owners."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from contract.database import Database
from contract.ids import made_at
from contract.job_state import LEASED_STATUSES, JobStatus
from contract.routing import Needs, Offer, would_wait_for
from contract.tables import Job
from contract.views.jobs import WouldWaitFor
from service.jobs import repository

MAX_LEASES = 200
LOOK_SECONDS = 1.0
"""How long the workers that were read are used before they are read again: every submission needs them."""


@dataclass(frozen=True)
class QueueState:
    """One queue."""

    name: str
    num_waiting: int
    num_running: int
    oldest_at: datetime | None
    """When the job was created that has waited longest."""


@dataclass(frozen=True)
class Lease:
    """A job in the hands of a worker."""

    worker: str
    queue: str
    expires_at: datetime | None
    attempt: int
    job_id: str
    owner: str


@dataclass(frozen=True)
class Place:
    """Where a waiting job stands in its queue; both fields are None if the job does not wait."""

    position: int | None = None
    would_wait_for: WouldWaitFor | None = None


class LiveOffers:
    """What the live workers offer, read from the database at most every `LOOK_SECONDS`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._offers: list[Offer] = []
        self._look_at = 0.0

    def place(self, job: Job, position: int | None) -> Place:
        """Return the place of a job with this position in its queue."""
        if position is None:
            return Place()
        return Place(position, self.would_wait_for(job.queue, Needs.read(job.needs)))

    def would_wait_for(self, queue: str, needs: Needs) -> WouldWaitFor | None:
        """Return what the job needs and no live worker has. Call it outside of transactions: it may open one."""
        if time.monotonic() >= self._look_at:
            with self._database.read() as session:
                announced = [Offer.read(one.queues, one.offer) for one in repository.live_workers(session)]
                silent = [Offer(queues=(queue,)) for queue in repository.queues_of_silent_workers(session)]
            self._offers, self._look_at = [*announced, *silent], time.monotonic() + LOOK_SECONDS
        return would_wait_for(queue, needs, self._offers)


class Fleet:
    """Reads who works on what."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def queues(self) -> list[QueueState]:
        """Return the queues in which something waits or runs."""
        with self._database.read() as session:
            rows = repository.open_by_queue(session)
        waiting = {row.queue: row for row in rows if row.status == JobStatus.QUEUED}
        return [
            QueueState(
                name,
                waiting[name].num_jobs if name in waiting else 0,
                sum(row.num_jobs for row in rows if row.queue == name and row.status in LEASED_STATUSES),
                made_at(waiting[name].first_id) if name in waiting else None,
            )
            for name in sorted({row.queue for row in rows})
        ]

    def num_by_status(self) -> dict[str, int]:
        """Return the number of jobs by status; a status without a job may be missing."""
        with self._database.read() as session:
            return repository.num_by_status(session)

    def num_workers_by_queue(self) -> Counter[str]:
        """Return how many live workers serve each queue."""
        with self._database.read() as session:
            return Counter(queue for worker in repository.live_workers(session) for queue in worker.queues)

    def leases(self, owner: str | None) -> list[Lease]:
        """Return the jobs in the hands of workers, of one owner or, with None, of all."""
        with self._database.read() as session:
            jobs = repository.leased(session, owner, MAX_LEASES)
        return [
            Lease(job.lease_owner or "", job.queue, job.lease_expires_at, job.attempt, job.id, job.owner)
            for job in jobs
        ]
