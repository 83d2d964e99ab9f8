from __future__ import annotations

import threading
from datetime import UTC, datetime

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
