"""A worker's first seconds: before the migration."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
from sqlalchemy import text

from contract.database import Database
from tests.migrations.schema import upgrade
from worker.periodic import Periodic
from worker.repository import schema_is_ready


def test_nothing_is_looked_for_before_the_schema_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    database = Database(url)
    stopping, called = threading.Event(), threading.Event()
    thread = Periodic("poller", called.set, seconds=0.1, stopping=stopping, ready=lambda: schema_is_ready(database))
    with caplog.at_level(logging.INFO, "worker.periodic"):
        thread.start()
        assert not called.wait(1.5)
        upgrade(url)
        assert called.wait(10)
    stopping.set()
    thread.join(10)
    database.dispose()
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_a_schema_of_the_version_before_is_waited_out(empty_database_url: str) -> None:
    database = Database(empty_database_url)
    assert not schema_is_ready(database)
    upgrade(empty_database_url)
    with database.write() as session:
        session.execute(text("ALTER TABLE jobs DROP COLUMN error_hint"))
    assert not schema_is_ready(database)
    with database.write() as session:
        session.execute(text("ALTER TABLE jobs ADD COLUMN error_hint TEXT"))
    assert schema_is_ready(database)
    with database.write() as session:
        session.execute(text("ALTER TABLE jobs ADD COLUMN of_the_next_version INTEGER"))
    assert schema_is_ready(database)
    database.dispose()
