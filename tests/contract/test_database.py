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


@pytest.mark.parametrize("is_over", [False, True], ids=["within", "after"])
def test_a_writer_that_is_frozen_within_a_batch_or_after_it_is_ended(
    is_over: bool, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL does not end it: within a batch the client is not idle, and the driver's flush after it switches the
    time-out off. Connections that compute, lock nothing of ours, load a dump, or are a person's stay."""
    monkeypatch.setattr("contract.database.POSTGRES_IDLE_SECONDS", 0.5)
    database = Database(postgres_url)
    with database.write() as session:
        session.add_all([lease("held"), lease("a person's")])
    url = database.engine.url.set(drivername="postgresql")
    with contextlib.ExitStack() as stack:

        def connected(name: str) -> psycopg.Connection[Any]:
            address = url.update_query_dict({"application_name": name}).render_as_string(hide_password=False)
            return stack.enter_context(contextlib.closing(psycopg.connect(address, autocommit=True)))

        def send(connection: psycopg.Connection[Any], *statements: bytes, is_over: bool = False) -> None:
            connection.execute("SET idle_in_transaction_session_timeout = 500")
            connection.pgconn.enter_pipeline_mode()
            for statement in statements:
                connection.pgconn.send_query_params(statement, [b"frozen"] if b"$1" in statement else None)
            connection.pgconn.flush()
            if is_over:
                connection.pgconn.pipeline_sync()
            connection.pgconn.send_flush_request()
            connection.pgconn.flush()

        frozen, computing, foreign = connected("of-one-worker"), connected("trd"), connected("trd")
        send(frozen, b"BEGIN", b"UPDATE leader_leases SET owner = $1 WHERE name = 'held'", is_over=is_over)
        send(computing, b"SELECT pg_sleep(60)")
        send(foreign, b"SELECT $1")
        loading, person = connected("pg_restore"), connected("psql")
        stack.enter_context(loading.cursor().copy("COPY leader_leases FROM STDIN"))  # between two of its rows
        person.execute("BEGIN")
        person.execute("UPDATE leader_leases SET owner = 'mine' WHERE name = 'a person''s'")
        time.sleep(1.2)
        assert database.end_frozen_writers() == 1
        with database.write() as session:
            session.execute(update(LeaderLease).where(LeaderLease.name == "held").values(owner="next"))
        time.sleep(0.2)
        assert database.end_frozen_writers() == 0
        with database.read() as session:
            assert session.scalar(select(LeaderLease.owner).where(LeaderLease.name == "held")) == "next"
            alive = set(session.scalars(text("SELECT pid FROM pg_stat_activity")))
        assert {one.info.backend_pid for one in (computing, foreign, loading, person)} <= alive
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
