"""Opens the database, and its transactions.

One request or one recorded event is one transaction: open it with `Database.read` or `Database.write`, which commits at
its end and rolls back on any exception. Queries are in repositories, `service.jobs.history`, `service.audit.log`,
`worker.lease` and `worker.reaper`; those of both sides are in `contract.events`, `contract.webhooks` and
`contract.retention`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Float, create_engine, event, func, literal, select, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

from contract.settings import make_private_folder, with_driver
from contract.tables import Base, UtcDateTime

POOL_SIZE = 20
"""Connections that stay open; up to as many again are opened while they are needed."""
SQLITE_BUSY_SECONDS = 30
"""How long a writer waits for another before it gives up with "database is locked"."""

POSTGRES_LOCK_SECONDS = 30
"""How long a statement waits for a lock on PostgreSQL, before it fails."""
POSTGRES_IDLE_SECONDS = 30
"""How long a transaction may be idle. That of a frozen process would keep its job's row locked: the job could
not be cancelled, and the reaper would skip it."""

_POSTGRES_TIMEOUTS = {
    "connect_timeout": 10,  # seconds
    # If the network drops packets a statement must fail: by default it would hang for hours.
    "keepalives_idle": 15,  # seconds
    "keepalives_interval": 5,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
    "fallback_application_name": "trd",
}


class Database:
    """A pool of connections to one database, SQLite or PostgreSQL."""

    def __init__(self, url: str, *, pool_size: int = POOL_SIZE) -> None:
        self.engine = _open_engine(with_driver(url), pool_size)
        self._writing_engine = self.engine.execution_options(trd_writes=True)
        self._turn = threading.Lock()

    @property
    def is_sqlite(self) -> bool:
        """True in embedded mode."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a transaction that only reads. On SQLite it never waits for a writer."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a transaction that may write, committed when the block ends without an exception.

        On SQLite it begins with BEGIN IMMEDIATE: a transaction that reads first and writes later cannot wait for
        another writer, and would fail at once with "database is locked".
        """
        with self._writers_turn(), Session(self._writing_engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def write_by_connection(self) -> Iterator[Connection]:
        """Open the same transaction without the ORM: a session costs as much as a statement."""
        with self._writers_turn(), self._writing_engine.begin() as connection:
            yield connection

    @contextmanager
    def _writers_turn(self) -> Iterator[None]:
        """Let the writing threads of this process take turns: SQLite allows one writer, and others would poll.

        A thread that waits for too long gets SQLite's own "database is locked".
        """
        is_ours = self.is_sqlite and self._turn.acquire(timeout=SQLITE_BUSY_SECONDS)
        try:
            yield
        finally:
            if is_ours:
                self._turn.release()

    def end_frozen_writers(self) -> int:
        """End connections whose process has stopped in a transaction that writes to our tables; return their number.

        PostgreSQL does it itself after `POSTGRES_IDLE_SECONDS`, except during a batch of rows and after it: the driver
        sends the rows without waiting, so that the client is not idle between two of them, and ends with the message
        Flush, which switches PostgreSQL's time-out off until the next statement. Locks and parameters tell our
        connections from those of people and of programs that load a dump: `application_name` may be different in each
        of our processes.
        """
        if self.is_sqlite:
            return 0
        frozen = text(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
            " AND usename = current_user AND state <> 'idle' AND wait_event = 'ClientRead' AND query LIKE '%$1%'"
            " AND state_change < clock_timestamp() - :seconds * interval '1 second'"
            " AND pid IN (SELECT pg_locks.pid FROM pg_locks JOIN pg_class ON pg_class.oid = relation"
            " WHERE relname = ANY(:tables) AND mode IN ('RowShareLock', 'RowExclusiveLock'))"
        )
        values = {"seconds": POSTGRES_IDLE_SECONDS, "tables": list(Base.metadata.tables)}
        with self.read() as session:
            return int(session.execute(frozen, values).scalar_one())

    def dispose(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()


class DatabaseNow(FunctionElement[datetime]):
    """The database's current time plus `offset_seconds`: leases and ages are compared by one clock."""

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, offset_seconds: float = 0.0) -> None:
        super().__init__(literal(offset_seconds, Float))


@compiles(DatabaseNow, "postgresql")
def _postgresql(element: DatabaseNow, compiler: Any, **options: Any) -> str:
    # Not now(): it is the start of the transaction, which may have waited for a lock.
    return f"(clock_timestamp() + {compiler.process(element.clauses, **options)} * interval '1 second')"


@compiles(DatabaseNow, "sqlite")
def _sqlite(element: DatabaseNow, compiler: Any, **options: Any) -> str:
    # In the text form in which SQLAlchemy stores times: SQLite compares them as strings.
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {compiler.process(element.clauses, **options)} || ' seconds')"


def lock_identical_requests(session: Session, identity: str) -> None:
    """Wait for other transactions with the same identity; hold the lock until this transaction ends.

    Later statements of this transaction see what the others committed. On SQLite a writing transaction is always
    alone, so nothing is done.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(identity, 0))))


def _open_engine(url: str, pool_size: int) -> Engine:
    # Errors are logged, and a statement's parameters may be texts of users and digests of keys.
    options: dict[str, Any] = {"pool_size": pool_size, "max_overflow": pool_size, "hide_parameters": True}
    options["pool_timeout"] = 30  # seconds
    if not url.startswith("sqlite"):
        engine = create_engine(url, pool_pre_ping=True, connect_args=_POSTGRES_TIMEOUTS, **options)
        event.listen(engine, "connect", _prepare_postgres)
        return engine
    engine = create_engine(url, **options)
    if engine.url.database:
        _make_private_file(Path(engine.url.database))
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_private_file(path: Path) -> None:
    """Make SQLite's file readable by its user alone, even in a folder that is not; its journal files get its mode."""
    make_private_folder(path.parent)
    if path.name == ":memory:" or path.name.startswith("file:"):
        return
    with suppress(PermissionError):  # another user's, who chose its mode
        path.touch(mode=0o600)
        path.chmod(0o600)


def _prepare_postgres(connection: Any, _record: object) -> None:
    """Set time-outs by statements: the driver's ``options`` would replace those that the URL may have."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = {int(POSTGRES_LOCK_SECONDS * 1000)}")
        cursor.execute(f"SET idle_in_transaction_session_timeout = {int(POSTGRES_IDLE_SECONDS * 1000)}")
    connection.commit()


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin transactions itself
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_SECONDS * 1000}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("trd_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
