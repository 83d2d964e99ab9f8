"""Removes stored files of ended attempts that no checkpoint's row names, so that the storage does not fill up.

They come from uploads that a lost worker left incomplete, from a superseded attempt that kept writing for a while, and
from failed removals. Files that a row names are never removed: a run may resume from them.
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
    """Remove the leftovers of attempts before that number and return their prefixes. Failures are only logged."""
    try:
        return remove_unnamed(database, storage, job_id, before_attempt=before_attempt)
    except (OSError, *PASSING_DATABASE_ERRORS) as error:
        logger.warning("leftovers of %s remain in the storage: %s", job_id, error)
        return []


def remove_unnamed(database: Database, storage: Storage, job_id: str, *, before_attempt: int) -> list[str]:
    """Do the same, and raise OSError or a database's error if it fails."""
    found = _unnamed(database, storage, job_id, before_attempt)
    for prefix in found:
        storage.remove_tree(prefix)
    if found:
        logger.info("removed leftovers of %s: %s", job_id, ", ".join(found))
    return found


def _unnamed(database: Database, storage: Storage, job_id: str, before_attempt: int) -> list[str]:
    folders = [f"{job_prefix(job_id)}/{name}" for name in storage.folders(job_prefix(job_id))]
    over = [folder for folder in folders if attempt_number(folder) < before_attempt]
    stored = [f"{folder}/{name}" for folder in over for name in storage.folders(folder)]
    if not stored:
        return []
    with database.read() as session:  # after the listing: a row added meanwhile protects its files
        named = {checkpoint.storage_prefix for checkpoint in repository.list_checkpoints(session, job_id)}
    return [prefix for prefix in stored if prefix not in named]


def collect_of_ended(database: Database, storage: Storage, job_id: str) -> None:
    """Remove the leftovers of all attempts if the job has ended."""
    try:
        with database.read() as session:
            standing = repository.find_standing(session, job_id)
    except PASSING_DATABASE_ERRORS as error:
        logger.warning("leftovers of %s remain in the storage: %s", job_id, error)
        return
    if standing is not None and JobStatus(standing.status).is_final:
        collect(database, storage, job_id, before_attempt=standing.attempt + 1)
