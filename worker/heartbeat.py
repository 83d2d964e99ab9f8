"""The heartbeat of an attempt: it renews the lease, and learns from the renewal what the attempt has to do.

Only the lease decides liveness, never the duration of the work. If the lease could not be renewed before its end, the
order is `Order.KILL`, because the reaper may have queued the job for another worker.
"""

from __future__ import annotations

import logging
import threading
import time
from enum import StrEnum
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from contract.database import Database
from contract.job_state import JobStatus
from worker.lease import Lease, LeaseLostError, renew
from worker.metrics import LEASE_RENEWALS
from worker.periodic import ContextThread

logger = logging.getLogger(__name__)


class Order(StrEnum):
    """What an attempt has to do."""

    CONTINUE = "continue"
    STOP = "stop"  # at the next boundary: the user cancelled or paused the job
    KILL = "kill"  # at once: the lease is lost or may be


class Heartbeat:
    """A context manager whose thread renews a lease until the context is left."""

    def __init__(self, database: Database, lease: Lease, *, lease_seconds: float, heartbeat_seconds: float) -> None:
        self._database = database
        self._lease = lease
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._ended = threading.Event()
        self._is_superseded = False
        self._status = JobStatus.RUNNING
        self._expires_at = time.monotonic() + lease_seconds
        self._thread = ContextThread(self._beat_until_ended, f"heartbeat-{lease.job_id}")

    @property
    def order(self) -> Order:
        """What the attempt has to do now. Reads no database, so it answers even if the database hangs."""
        if self._is_superseded or time.monotonic() >= self._expires_at:
            return Order.KILL
        return Order.CONTINUE if self._status is JobStatus.RUNNING else Order.STOP

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=self._lease_seconds)

    def _beat_until_ended(self) -> None:
        while not self._ended.wait(self._heartbeat_seconds) and not self._is_superseded:
            self._beat()

    def _beat(self) -> None:
        # Counted from before the request: the database's clock starts no earlier.
        asked_at = time.monotonic()
        try:
            with self._database.write() as session:
                status = renew(session, self._lease, self._lease_seconds)
        except LeaseLostError:
            self._is_superseded = True
            LEASE_RENEWALS.labels("lost").inc()
        except SQLAlchemyError as error:
            LEASE_RENEWALS.labels("failed").inc()
            logger.warning("the lease of %s was not renewed: %s", self._lease.job_id, error)
        else:
            self._status = status
            self._expires_at = asked_at + self._lease_seconds
            LEASE_RENEWALS.labels("renewed").inc()
