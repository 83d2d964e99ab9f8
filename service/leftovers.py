"""Removes files of deleted jobs and datasets that remained because the process ended or the storage failed, and those
of uploads that were never completed.

Only files whose row is marked as deleted are removed, so a database that belongs to another storage removes nothing.
"""

from __future__ import annotations

import logging

from sqlalchemy.exc import SQLAlchemyError

from contract.database import Database
from contract.storage import Storage
from contract.storage_keys import DATASETS_PREFIX, JOBS_PREFIX
from service.datasets import repository as datasets
from service.jobs import repository as jobs

logger = logging.getLogger(__name__)

BATCH = 500
"""Number of ids in one query."""


def collect_deleted(database: Database, storage: Storage) -> None:
    """Remove the files. Failures are logged, and retried at the next start."""
    for prefix, deleted_among in ((JOBS_PREFIX, jobs.deleted_among), (DATASETS_PREFIX, datasets.deleted_among)):
        try:
            names = storage.folders(prefix)
            for start in range(0, len(names), BATCH):
                with database.read() as session:
                    deleted = deleted_among(session, names[start : start + BATCH])
                for name in deleted:
                    storage.remove_tree(f"{prefix}/{name}")
                    logger.info("removed the remaining files of %s", name)
        except (OSError, SQLAlchemyError) as error:
            logger.warning("files of deleted %s stay in the storage: %s", prefix, error)
