"""Applies the retention policy: removes records of ended jobs, a bounded time at each of the reaper's turns.

Each transaction is short and complete, so that a worker that is killed leaves nothing to repair, and two at work harm
nothing. Files are removed after their rows, as leftovers.
"""

from __future__ import annotations

import logging
import time

from contract.database import Database
from contract.retention import Policy, RecordKind, complete, due_jobs, remove_batch
from contract.storage import Storage
from worker import leftovers

logger = logging.getLogger(__name__)

TURN_SECONDS = 2.0
"""A turn begins nothing new after this time: the reaper has leases to look at."""
NUM_JOBS = 50
"""Jobs of one look at the database."""


class Retention:
    """The policy of one worker, whose reaper must be the leader."""

    def __init__(self, database: Database, storage: Storage, policy: Policy) -> None:
        self._database = database
        self._storage = storage
        self._policy = policy

    def turn(self, *, seconds: float = TURN_SECONDS) -> None:
        """Remove what is due, for about this long; the next turn continues."""
        deadline = time.monotonic() + seconds
        for kind, days in self._policy.items():
            has_progress = True
            while has_progress and time.monotonic() < deadline:
                with self._database.read() as session:
                    job_ids = due_jobs(session, kind, days, NUM_JOBS)
                are_done = [self._remove(kind, days, job_id, deadline) for job_id in job_ids]
                # Jobs that stay due are locked by somebody, or the storage fails: the next turn tries again.
                has_progress = any(are_done)

    def _remove(self, kind: RecordKind, days: float, job_id: str, deadline: float) -> bool:
        """Remove the job's records until the deadline; return whether none is left."""
        while time.monotonic() < deadline:
            with self._database.write() as session:
                removed = remove_batch(session, kind, days, job_id)
                if removed is None:
                    return False
                if removed.is_last and kind is not RecordKind.CHECKPOINTS:
                    complete(session, kind, days, job_id)
                    return True
            if removed.is_last:
                return self._remove_files(days, job_id, removed.attempt)
        return False

    def _remove_files(self, days: float, job_id: str, attempt: int) -> bool:
        """Remove the files of checkpoints whose rows are gone, of attempts up to that number."""
        try:
            leftovers.remove_unnamed(self._database, self._storage, job_id, before_attempt=attempt + 1)
        except OSError as error:
            logger.warning("files of %s that are due for removal stay in the storage: %s", job_id, error)
            return False
        with self._database.write() as session:
            complete(session, RecordKind.CHECKPOINTS, days, job_id)
        return True
