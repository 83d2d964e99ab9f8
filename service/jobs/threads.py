"""The threads in which jobs are made.

The framework would take one of its forty for each request. Threads of one process take turns, at Python and on
SQLite at writing, and the more of them wait, the more of the processor goes into their turns. Handing a request
to a pool of our own costs less, too.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from contract.database import POOL_SIZE, Database

NUM_SQLITE_THREADS = 4
"""One writes, the others have something ready for when it is done."""


def job_threads(database: Database) -> ThreadPoolExecutor:
    """As many as may work at once: on PostgreSQL each waits for a connection of its own."""
    num_threads = NUM_SQLITE_THREADS if database.is_sqlite else POOL_SIZE
    return ThreadPoolExecutor(num_threads, thread_name_prefix="jobs")
