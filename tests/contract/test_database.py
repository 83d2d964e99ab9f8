from __future__ import annotations

import contextlib
import threading
import time
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from contract.database import Database
from contract.tables import LeaderLease


def lease(name: str) -> LeaderLease:
    return LeaderLease(name=name, owner="test", expires_at=datetime.now(UTC))


def names(database: Database) -> list[str]:
    with database.read() as session:
        return sorted(session.scalars(select(LeaderLease.name)))


def add_and_fail(database: Database) -> None:
    with database.write() as session:
        session.add(lease("lost"))
        session.flush()
        raise RuntimeError


def test_a_transaction_is_kept_whole_or_not_at_all(database_url: str) -> None:
    database = Database(database_url)
    with database.write() as session:
        session.add(lease("kept"))
    with pytest.raises(RuntimeError):
        add_and_fail(database)
    assert names(database) == ["kept"]
    database.dispose()


def test_writers_that_read_first_all_get_their_turn(database_url: str) -> None:
    """A SQLite transaction that turns into a writer late fails with "database is locked", without waiting."""
    database = Database(database_url)
    failures: list[Exception] = []

    def count_and_add(thread: int) -> None:
        try:
            for number in range(20):
                with database.write() as session:
                    session.scalar(select(func.count()).select_from(LeaderLease))
                    session.add(lease(f"{thread}-{number}"))
        except Exception as error:  # noqa: BLE001 - the test fails with it below
            failures.append(error)

    threads = [threading.Thread(target=count_and_add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(names(database)) == 160
    database.dispose()


def test_a_frozen_writer_keeps_nobody_waiting_for_long(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contract.database.POSTGRES_IDLE_SECONDS", 0.3)
    frozen, other = Database(postgres_url), Database(postgres_url)
    with other.write() as session:
        session.add(lease("held"))

    def take(database: Database, owner: str) -> None:
        with database.write() as session:
            session.execute(update(LeaderLease).values(owner=owner))
            if database is frozen:
                thread.start()
                thread.join(20)

    thread = threading.Thread(target=take, args=(other, "other"))
    with pytest.raises(DBAPIError):
        take(frozen, "frozen")
    with other.read() as session:
        assert session.scalar(select(LeaderLease.owner)) == "other"
    frozen.dispose()
    other.dispose()


def test_a_writer_that_is_frozen_within_a_batch_is_ended(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL does not call it idle: the batch is not over. Connections that compute, wait, lock nothing of
    ours, or load a dump stay."""
    monkeypatch.setattr("contract.database.POSTGRES_IDLE_SECONDS", 0.5)
    database = Database(postgres_url)
    with database.write() as session:
        session.add(lease("held"))
    url, locking = database.engine.url.set(drivername="postgresql"), "UPDATE leader_leases SET owner = 'frozen'"
    with contextlib.ExitStack() as stack:

        def connected(name: str) -> psycopg.Connection[Any]:
            address = url.update_query_dict({"application_name": name}).render_as_string(hide_password=False)
            return stack.enter_context(contextlib.closing(psycopg.connect(address)))

        def send(connection: psycopg.Connection[Any], statement: str) -> None:
            connection.pgconn.enter_pipeline_mode()
            connection.pgconn.send_query_params(statement.encode(), None)
            connection.pgconn.send_flush_request()  # and no sync, with which a batch ends
            connection.pgconn.flush()

        frozen, computing, foreign = connected("of-one-worker"), connected("trd"), connected("psql")
        send(frozen, locking)
        send(computing, "SELECT pg_sleep(60)")
        send(foreign, "SELECT 1")
        loading = connected("pg_restore")
        stack.enter_context(loading.cursor().copy("COPY leader_leases FROM STDIN"))  # between two of its rows
        time.sleep(0.8)
        assert database.end_frozen_writers() == 1
        with database.write() as session:
            assert session.execute(update(LeaderLease).values(owner="next")).rowcount == 1  # type: ignore[attr-defined]
        time.sleep(0.2)
        assert database.end_frozen_writers() == 0
        with database.read() as session:
            alive = set(session.scalars(text("SELECT pid FROM pg_stat_activity")))
        assert {one.info.backend_pid for one in (computing, foreign, loading)} <= alive
        computing.cancel()
    database.dispose()


def test_a_lock_is_not_waited_for_without_end(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contract.database.POSTGRES_LOCK_SECONDS", 0.2)
    database = Database(postgres_url)
    with database.write() as session:
        session.add(lease("held"))
    with database.write() as first:
        first.execute(update(LeaderLease).values(owner="first"))
        with pytest.raises(OperationalError, match="lock timeout"), database.write() as second:
            second.execute(update(LeaderLease).values(owner="second"))
    database.dispose()


def test_an_error_does_not_show_what_was_to_be_stored(database_url: str) -> None:
    database = Database(database_url)
    with pytest.raises(IntegrityError) as caught, database.write() as session:
        session.execute(insert(LeaderLease).values(name="n", owner="a-secret", expires_at=None))
    assert "a-secret" not in str(caught.value).partition("[SQL")[2]
    database.dispose()


def test_sqlite_reads_while_another_writes(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    with database.write() as session:
        session.add(lease("unseen"))
        session.flush()
        assert names(database) == []
    assert names(database) == ["unseen"]
    with database.read() as session:
        assert session.scalar(text("PRAGMA foreign_keys")) == 1
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
    database.dispose()
