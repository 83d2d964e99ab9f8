"""Shows what a retention policy would remove."""

from __future__ import annotations

import time

from contract.database import Database
from contract.retention import RecordKind, count_due, due_jobs, num_bytes, num_rows
from contract.views.retention import RetainedKind

MEASURE_SECONDS = 3.0
"""After this time no more jobs of a kind are measured."""
MAX_MEASURED = 10_000
CHUNK = 50
"""Jobs in one statement."""


def preview(database: Database, kind: RecordKind, days: float | None) -> RetainedKind:
    """Return what a limit of so many days would remove now; None removes nothing."""
    num_jobs, oldest, num_measured, rows, volume = 0, None, 0, 0, 0
    deadline = time.monotonic() + MEASURE_SECONDS
    with database.read() as session:
        if days is not None:
            num_jobs, oldest = count_due(session, kind, days)
            job_ids = due_jobs(session, kind, days, MAX_MEASURED)
            while num_measured < len(job_ids) and time.monotonic() < deadline:
                chunk = job_ids[num_measured : num_measured + CHUNK]
                rows += num_rows(session, kind, chunk)
                volume += num_bytes(session, kind, chunk)
                num_measured += len(chunk)
    return RetainedKind(
        kind=kind.value,
        days=days,
        num_jobs=num_jobs,
        oldest_finished_at=oldest,
        num_measured_jobs=num_measured,
        num_rows=rows,
        num_bytes=volume,
    )
