"""What one worker process has: a place for one job at a time, and what jobs are run with."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from contract.database import Database
from contract.model_catalog import CatalogEntry, parse_catalog
from worker.engine_process import engine_command
from worker.lease import Lease
from worker.settings import WorkerSettings
from worker.storage import Storage

CommandBuilder = Callable[[Path, int], list[str]]
"""The attempt's folder and the number of devices, to the child's command line."""


class Slot:
    """A worker's one place for a job. Opens nothing before it is used."""

    def __init__(self, settings: WorkerSettings, *, command_for: CommandBuilder = engine_command) -> None:
        self.settings = settings
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        """Owner of leases; unique to the process."""
        self.command_for = command_for
        self.stopping = threading.Event()
        """Set once the worker shuts down: take no new job, and end the running one at a boundary."""
        self._is_taken = threading.Lock()

    @cached_property
    def database(self) -> Database:
        """The truth about jobs."""
        return Database(self.settings.database_url, pool_size=5)

    @cached_property
    def storage(self) -> Storage:
        """Where datasets and checkpoints lie."""
        return Storage(self.settings.storage_url)

    def catalog(self) -> dict[str, CatalogEntry]:
        """The operator's models, read anew: a folder may have got another one since."""
        return parse_catalog(self.settings.models)

    def attempt_folder(self, lease: Lease) -> Path:
        """Scratch of one attempt."""
        return self.settings.scratch_dir / lease.job_id / f"attempt-{lease.attempt:04d}"

    def close(self) -> None:
        """Close the connections to the database; it is opened anew where it is used again."""
        self.database.dispose()

    @contextmanager
    def taken(self) -> Iterator[bool]:
        """True for whoever comes first, until the block ends; false, at once, for everybody else."""
        is_mine = self._is_taken.acquire(blocking=False)
        try:
            yield is_mine
        finally:
            if is_mine:
                self._is_taken.release()
