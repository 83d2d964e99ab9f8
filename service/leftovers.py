"""Files of jobs and datasets that were deleted, and stayed: the process ended, or the storage was away, between the
deletion and the removal. Files of uploads that ended before their row was complete.

A row that says so makes its files go, and nothing else does: a database that is not this storage's removes nothing.
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
"""Ids asked about at once."""


def collect_deleted(database: Database, storage: Storage) -> None:
    """Remove them. What fails is logged, and tried again at the next start."""
    for prefix, deleted_among in ((JOBS_PREFIX, jobs.deleted_among), (DATASETS_PREFIX, datasets.deleted_among)):
        try:
            names = storage.folders(prefix)
            for start in range(0, len(names), BATCH):
                with database.read() as session:
                    deleted = deleted_among(session, names[start : start + BATCH])
                for name in deleted:
                    storage.remove_tree(f"{prefix}/{name}")
                    logger.info("removed what was left of %s", name)
        except (OSError, SQLAlchemyError) as error:
            logger.warning("files of deleted %s stay in the storage: %s", prefix, error)
