"""The slot of a worker process, and the attempt at a job that occupies it.

An `Attempt` is what everything that works on a job is given: who it is, its folders, the storage, and the only way to
write to the database, which its lease guards: a superseded attempt writes nothing.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

from sqlalchemy.orm import Session

from contract.database import Database
from contract.events import NewEvent, append_events
from contract.model_catalog import CatalogEntry, parse_catalog
from contract.storage import Storage
from worker.heartbeat import Heartbeat, Order
from worker.launchers import CommandBuilder, launcher_of
from worker.lease import Lease, fenced
from worker.periodic import Periodic
from worker.repository import schema_is_ready
from worker.settings import WorkerSettings


class Slot:
    """A worker's place for one job at a time, and what its jobs run with. Opens nothing before it is used."""

    def __init__(self, settings: WorkerSettings, *, command_for: CommandBuilder | None = None) -> None:
        """`command_for` replaces the launcher of the settings."""
        self.settings = settings
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        """Owner of leases; unique to the process."""
        self.command_for = command_for or launcher_of(settings)
        self.stopping = threading.Event()
        """Set when the worker shuts down: it then claims no job, and stops the running one at a step boundary."""
        self.started_at = datetime.now(UTC)
        self.findings: list[dict[str, Any]] | None = None
        """Findings of this machine's checks; None until they have ended."""
        self._is_taken = threading.Lock()

    @cached_property
    def database(self) -> Database:
        """The database of the jobs."""
        return Database(self.settings.database_url, pool_size=5)

    @cached_property
    def storage(self) -> Storage:
        """The storage of datasets and checkpoints."""
        return Storage(self.settings.storage_url)

    def catalog(self) -> dict[str, CatalogEntry]:
        """Return the models that jobs may name, read again: a folder may have a new one."""
        return parse_catalog(self.settings.models)

    def repeat(self, name: str, action: Callable[[], None], seconds: float) -> Periodic:
        """Return a thread that repeats `action` until the worker stops, once the database has its schema."""
        ready = partial(schema_is_ready, self.database)
        return Periodic(name, action, seconds=seconds, stopping=self.stopping, ready=ready)

    def close(self) -> None:
        """Close the connections to the database; it opens new ones if it is used again."""
        self.database.dispose()

    @contextmanager
    def taken(self) -> Iterator[bool]:
        """Take the slot until the block ends; yields False at once if it is taken already."""
        is_mine = self._is_taken.acquire(blocking=False)
        try:
            yield is_mine
        finally:
            if is_mine:
                self._is_taken.release()


class Attempt:
    """One attempt at a job in a slot."""

    def __init__(self, slot: Slot, lease: Lease) -> None:
        self.slot = slot
        self.settings = slot.settings
        self.database = slot.database
        self.storage = slot.storage
        self.lease = lease
        self.job_id = lease.job_id
        self.number = lease.attempt
        self.folder = self.settings.scratch_dir / lease.job_id / f"attempt-{lease.attempt:04d}"
        self.run_dir = self.folder / "run"
        self.heartbeat = Heartbeat(
            slot.database,
            lease,
            lease_seconds=self.settings.lease_seconds,
            heartbeat_seconds=self.settings.heartbeat_seconds,
        )

    def __str__(self) -> str:
        return f"attempt {self.number} of {self.job_id}"

    def is_lost(self) -> bool:
        """Return whether the lease is lost, or may be: nothing more may be done for the job."""
        return self.heartbeat.order is Order.KILL

    def must_stop(self) -> bool:
        """Return whether the run has to stop at its next boundary, for its user or for the worker's shutdown."""
        return self.heartbeat.order is Order.STOP or self.slot.stopping.is_set()

    def write(self) -> AbstractContextManager[Session]:
        """Open a transaction that writes to the job; raises `LeaseLostError` before anything is written."""
        return fenced(self.database, self.lease)

    def record(self, *events: NewEvent) -> None:
        """Append events to the job; raises `LeaseLostError`."""
        with self.write() as session:
            append_events(session, self.job_id, *events)
