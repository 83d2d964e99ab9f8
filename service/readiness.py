"""Checks of what the service needs. Anybody may call them without a key, so they run at most once a second: each takes
a database connection and writes a file into the storage. No caller waits for another's check: a check that hangs would
hold the threads of all callers."""

from __future__ import annotations

import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from contract.database import Database
from contract.routing import Offer
from contract.storage import Storage
from contract.tables import Worker
from contract.views.health import WorkerFailure, WorkerHealth
from service.db import current_revision, expected_revision
from service.enqueue import Doorbell
from service.jobs.repository import live_workers

LOOK_SECONDS = 1.0
SLOW_SECONDS = 0.5
HANGING_SECONDS = 10.0
"""A check that takes longer counts as failed."""

_PARTS = ("database", "schema", "storage")


class Readiness:
    """Holds the results of the last check."""

    def __init__(self, database: Database, storage: Storage, doorbell: Doorbell) -> None:
        self._database = database
        self._storage = storage
        self._doorbell = doorbell
        self._looking = threading.Lock()
        self._parts = dict.fromkeys(_PARTS, "is being checked")
        self.workers: list[WorkerHealth] = []
        """Those that were alive at the last look; empty if the database could not be read."""
        self.slow: list[str] = []
        """The checks of the last look that took longer than `SLOW_SECONDS`, with their times."""
        self._look_at = 0.0
        self._began_at = 0.0

    def parts(self) -> dict[str, str]:
        """Return ok, or what is wrong, for each part. The broker is not one of them: workers poll the database too."""
        if time.monotonic() < self._look_at:
            return self._parts
        if not self._looking.acquire(blocking=False):
            hangs = time.monotonic() - self._began_at > HANGING_SECONDS
            return dict.fromkeys(_PARTS, "does not answer") if hangs else self._parts
        try:
            self._began_at = time.monotonic()
            database, schema = self._database_state()
            self.workers = self._live_workers() if database == schema == "ok" else []
            read_at = time.monotonic()
            self._parts = {"database": database, "schema": schema, "storage": self._storage_state()}
            seconds = {"database": read_at - self._began_at, "storage": time.monotonic() - read_at}
            self.slow = [f"{part}: {took:.1f} s" for part, took in seconds.items() if took > SLOW_SECONDS]
            self._look_at = time.monotonic() + LOOK_SECONDS
        finally:
            self._looking.release()
        return self._parts

    def broker(self) -> str:
        """Return ok, or what the broker's outage means."""
        return "ok" if self._doorbell.is_reachable() else "unreachable; jobs start when a worker polls the database"

    def _live_workers(self) -> list[WorkerHealth]:
        try:
            with self._database.read() as session:
                return [_worker_health(worker) for worker in live_workers(session)]
        except SQLAlchemyError:
            return []

    def _database_state(self) -> tuple[str, str]:
        try:
            current = current_revision(self._database)
        except SQLAlchemyError:
            return "unreachable", "unknown"
        expected = expected_revision()
        if current != expected:
            return "ok", f"is at {current or 'nothing'}, expected {expected}: run alembic upgrade head"
        return "ok", "ok"

    def _storage_state(self) -> str:
        try:
            self._storage.check()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            return f"not writable: {reason}; check STORAGE_URL and the AWS_ variables"
        return "ok"


def _worker_health(worker: Worker) -> WorkerHealth:
    """Return what anybody may read: passed checks are only counted, since they name versions."""
    findings, offer = worker.findings, Offer.read(worker.queues, worker.offer)
    failed = [finding for finding in findings or () if finding["status"] == "fail"]
    return WorkerHealth(
        name=worker.name,
        queues=worker.queues,
        device_kind=worker.device_kind,
        num_devices=offer.num_devices,
        device_bytes=offer.device_bytes,
        num_passed=None if findings is None else sum(finding["status"] == "pass" for finding in findings),
        failures=[WorkerFailure(**{name: str(one[name]) for name in WorkerFailure.model_fields}) for one in failed],
    )
