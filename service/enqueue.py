"""Ringing the doorbell: one message a job, sent after the commit, never waited for.

The database is the truth and workers look there on their own, so that a message that is lost or
sent twice does no harm. A broker that is down therefore delays a job, and never fails a request.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from celery import Celery  # type: ignore[import-untyped]
from kombu.exceptions import OperationalError
from kombu.transport import filesystem

from contract.broker import broker_settings, make_broker_folders
from contract.messages import RUN_JOB_TASK

logger = logging.getLogger(__name__)

SEND_SECONDS = 2.0
"""How long one message may hold up the next."""
CHECK_SECONDS = 10.0
"""How long an answer about the broker holds: asking one that is down takes seconds."""
MAX_PENDING = 1000
"""Messages that wait for a slow broker; more are dropped, the workers' own look finds their jobs."""
MAX_RINGS_A_SECOND = 32
"""Of one queue. A message makes a free worker look what waits first, whichever job it was sent for: what more
messages would tell, the workers know, and each costs as much as a good part of the request."""


class Doorbell:
    """Sends job ids to the workers from a thread of its own."""

    def __init__(self, broker_url: str | None, data_dir: Path) -> None:
        settings = broker_settings(broker_url, data_dir)
        make_broker_folders(settings)
        self._celery = _producer(settings)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="doorbell")
        self._room = threading.BoundedSemaphore(MAX_PENDING)
        self._rung: Counter[str] = Counter()
        self._second = 0
        self._counting = threading.Lock()
        self._checking = threading.Lock()
        self._was_reachable = False
        self._check_at = 0.0

    def ring(self, job_id: str, queue: str) -> None:
        """Send the message soon. Never raises and never waits."""
        if self._rings_enough(queue):
            return
        if self._room.acquire(blocking=False):
            self._thread.submit(self._send, job_id, queue)
        else:
            logger.warning("doorbell dropped: the broker is slow", extra={"job_id": job_id})

    def _rings_enough(self, queue: str) -> bool:
        with self._counting:
            second = int(time.monotonic())
            if second != self._second:
                self._second = second
                self._rung.clear()
            self._rung[queue] += 1
            return self._rung[queue] > MAX_RINGS_A_SECOND

    def _send(self, job_id: str, queue: str) -> None:
        try:
            self._celery.send_task(RUN_JOB_TASK, args=[job_id], queue=queue, retry=False, ignore_result=True)
        except Exception as error:  # noqa: BLE001 - the thread's edge; each broker's driver has errors of its own
            logger.warning("doorbell failed, the workers will find the job: %s", error, extra={"job_id": job_id})
        finally:
            self._room.release()

    def is_reachable(self) -> bool:
        """True where the broker takes a connection within `SEND_SECONDS`; asked every `CHECK_SECONDS` at most, by one
        caller. Who comes meanwhile gets the answer before: anybody may ask, and would hold a thread of all requests."""
        if time.monotonic() >= self._check_at and self._checking.acquire(blocking=False):
            try:
                self._was_reachable = self._connects()
                self._check_at = time.monotonic() + CHECK_SECONDS
            finally:
                self._checking.release()
        return self._was_reachable

    def _connects(self) -> bool:
        try:
            with self._celery.connection_for_write(connect_timeout=SEND_SECONDS) as connection:
                connection.ensure_connection(max_retries=1, timeout=SEND_SECONDS)
        except (OperationalError, OSError):
            return False
        return True

    def close(self) -> None:
        """Send what is waiting, and stop."""
        self._thread.shutdown(wait=True)
        self._celery.close()


def _producer(settings: dict[str, Any]) -> Celery:
    app = Celery("trd-producer", set_as_current=False)
    app.conf.update(settings)
    app.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        broker_connection_timeout=SEND_SECONDS,
        broker_connection_retry=False,
        broker_pool_limit=1,
    )
    if settings["broker_url"].startswith("redis"):
        quick = {"socket_connect_timeout": SEND_SECONDS, "socket_timeout": SEND_SECONDS, "max_retries": 0}
        app.conf.broker_transport_options = {**settings["broker_transport_options"], **quick}
    if settings["broker_url"].startswith("filesystem"):
        app.conf.broker_transport = f"{__name__}:WholeFileTransport"
    return app


class _WholeFileChannel(filesystem.Channel):
    """A message appears under its name only when it is whole.

    kombu's own channel writes into the open file under its final name, and a worker that lists the
    folder in between reads an empty message, which ends that worker.
    """

    def _put(self, queue: Any, payload: Any, **_: Any) -> None:  # type: ignore[override]
        folder = Path(self.data_folder_out)
        name = f"{time.time_ns()}_{uuid.uuid4()}"
        draft = folder / f"{name}.draft"
        draft.write_text(json.dumps(payload), encoding="utf-8")
        draft.replace(folder / f"{name}.{queue}.msg")


class WholeFileTransport(filesystem.Transport):
    """kombu's ``filesystem://`` with whole messages."""

    Channel = _WholeFileChannel
