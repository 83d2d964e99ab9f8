"""Files of attempts that are over and that no checkpoint's row names: collected, so that storage does not fill up.

They come from uploads that a lost worker left half done, from a superseded attempt that wrote on for a while, and
from removals that failed. Nothing that a row names is ever touched, so that a run keeps what it resumes from.
"""

from __future__ import annotations

import logging

from contract.database import Database
from contract.job_state import JobStatus
from contract.storage import Storage
from contract.storage_keys import attempt_number, job_prefix
from worker import repository
from worker.progress import PASSING_DATABASE_ERRORS

logger = logging.getLogger(__name__)


def collect(database: Database, storage: Storage, job_id: str, *, before_attempt: int) -> list[str]:
    """Remove what attempts before that number left; returns the prefixes. Failures are only logged."""
    try:
        found = _unnamed(database, storage, job_id, before_attempt)
        for prefix in found:
            storage.remove_tree(prefix)
    except (OSError, *PASSING_DATABASE_ERRORS) as error:
        logger.warning("leftovers of %s stay in the storage: %s", job_id, error)
        return []
    if found:
        logger.info("removed leftovers of %s: %s", job_id, ", ".join(found))
    return found


def _unnamed(database: Database, storage: Storage, job_id: str, before_attempt: int) -> list[str]:
    folders = [f"{job_prefix(job_id)}/{name}" for name in storage.folders(job_prefix(job_id))]
    over = [folder for folder in folders if attempt_number(folder) < before_attempt]
    stored = [f"{folder}/{name}" for folder in over for name in storage.folders(folder)]
    if not stored:
        return []
    with database.read() as session:  # after the listing: a row that came meanwhile protects its files
        named = {checkpoint.storage_prefix for checkpoint in repository.list_checkpoints(session, job_id)}
    return [prefix for prefix in stored if prefix not in named]


def collect_of_ended(database: Database, storage: Storage, job_id: str) -> None:
    """Remove what all attempts left, where no attempt is at work and none waits."""
    try:
        with database.read() as session:
            stands = repository.find_standing(session, job_id)
    except PASSING_DATABASE_ERRORS as error:
        logger.warning("leftovers of %s stay in the storage: %s", job_id, error)
        return
    if stands is not None and JobStatus(stands.status).is_final:
        collect(database, storage, job_id, before_attempt=stands.attempt + 1)
