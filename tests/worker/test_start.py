"""A worker's first seconds: before the migration, and with messages of long ago."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path

import pytest
from kombu import Connection
from sqlalchemy import text

from contract.broker import broker_settings, make_broker_folders
from contract.database import Database
from tests.migrations.schema import upgrade
from worker.embedded_broker import HEARD_SECONDS, Transport
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
    upgrade(empty_database_url, "0004")
    assert not schema_is_ready(database)
    upgrade(empty_database_url)
    assert schema_is_ready(database)
    with database.write() as session:
        session.execute(text("ALTER TABLE jobs ADD COLUMN of_the_next_version INTEGER"))
    assert schema_is_ready(database)
    database.dispose()


def test_messages_that_were_heard_long_ago_are_cleared_and_no_others(tmp_path: Path) -> None:
    settings = broker_settings(None, tmp_path)
    make_broker_folders(settings)
    processed = Path(settings["broker_transport_options"]["processed_folder"])
    old, fresh = processed / "1_a.queue.msg", processed / "2_b.queue.msg"
    for path, age in ((old, 2 * HEARD_SECONDS), (fresh, 0)):
        path.write_text("{}", encoding="utf-8")
        os.utime(path, (time.time() - age,) * 2)
    options = settings["broker_transport_options"]
    with Connection(transport=Transport, transport_options=options) as connection:
        queue = connection.SimpleQueue("queue")
        queue.put({"job": "1"})
        message = queue.get(timeout=10)
        assert message.payload == {"job": "1"}
        message.ack()
        queue.close()
    left = {path.name for path in processed.iterdir()}
    assert old.name not in left
    assert fresh.name in left
