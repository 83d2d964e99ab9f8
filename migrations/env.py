"""Run by alembic: opens the database and walks it through the revisions.

The address is the configuration's ``sqlalchemy.url``, set by code that calls
`alembic.command.upgrade`, else `DATABASE_URL`, else SQLite in the data folder. A whole upgrade is
one transaction that begins by taking a lock: processes that start together migrate one after the
other, and a failed upgrade leaves nothing half done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import context

from contract.settings import DatabaseSettings, with_driver
from contract.tables import Base, UtcDateTime

ADVISORY_LOCK = 7_244_001
"""PostgreSQL's advisory locks are numbers that the users of a database agree on; this one is ours."""


def configured_url() -> str:
    """Return the address of the database to migrate."""
    explicit = context.config.get_alembic_option("sqlalchemy.url")
    return with_driver(explicit) if explicit else DatabaseSettings.of_process().database_url


def render_item(kind: str, item: object, autogen_context: Any) -> str | bool:
    """Write plain types into revisions, which must not change when our own types do."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def options() -> dict[str, Any]:
    """Return what autogenerate compares, and how it writes what it finds."""
    return {
        "target_metadata": Base.metadata,
        "render_as_batch": True,  # SQLite alters a table by building it anew
        "compare_type": True,
        "compare_server_default": True,
        "render_item": render_item,
        # SQLite's data definition is transactional too once the driver no longer commits on its own.
        "transactional_ddl": True,
    }


def open_engine(url: str) -> sa.Engine:
    """Open an engine for one connection."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    if engine.dialect.name == "sqlite":
        if engine.url.database:
            Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        sa.event.listen(engine, "connect", _leave_transactions_to_us)
        sa.event.listen(engine, "begin", _begin_immediate)
    return engine


def _leave_transactions_to_us(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # else the driver commits before every CREATE TABLE
    connection.execute("PRAGMA busy_timeout = 30000")  # milliseconds


def _begin_immediate(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def run_online() -> None:
    """Migrate the database itself."""
    engine = open_engine(configured_url())
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
        context.configure(connection=connection, **options())
        if engine.dialect.name == "postgresql":
            _lock_jobs(connection)
        context.run_migrations()
    engine.dispose()


def _lock_jobs(connection: sa.Connection) -> None:
    """Lock the jobs before any other table if there is something to do, as the transactions of the workers do.

    Otherwise a migration of another table could wait for a worker's transaction that waits for the migration.
    """
    is_newest = set(context.get_context().get_current_heads()) == set(context.script.get_heads())
    if not is_newest and sa.inspect(connection).has_table("jobs"):
        connection.execute(sa.text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))


def run_offline() -> None:
    """Print the SQL instead (``alembic upgrade head --sql``)."""
    context.configure(url=configured_url(), literal_binds=True, **options())
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
