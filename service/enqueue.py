"""The doorbell: one message per job, sent after the commit by a thread that no request waits for.

Workers poll the database, so a message that is lost or sent twice does no harm. A broker that is down delays a job
and never fails a request. Without a broker (embedded mode) nothing is sent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from celery import Celery  # type: ignore[import-untyped]
from kombu.exceptions import OperationalError

from contract.messages import RUN_JOB_TASK, redis_options

logger = logging.getLogger(__name__)

SEND_SECONDS = 2.0
"""Longest time that one message may delay the next."""
CHECK_SECONDS = 10.0
"""How long the result of a connection check is reused: checking a broker that is down takes seconds."""
MAX_PENDING = 1000
"""Messages that may wait for a slow broker. Further ones are dropped; polling workers find their jobs."""
MAX_RINGS_A_SECOND = 8
"""Per queue. A message makes a free worker claim the first waiting job, whichever job it was sent for, so more
messages only save free workers the wait until their next poll, and sending one costs a good part of a request."""


class Doorbell:
    """Sends job ids to the workers from one background thread."""

    def __init__(self, broker_url: str | None) -> None:
        """`broker_url` is None in embedded mode."""
        self._celery = _producer(broker_url) if broker_url is not None else None
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
        if self._celery is None or self._rings_enough(queue):
            return
        if self._room.acquire(blocking=False):
            self._thread.submit(self._send, self._celery, job_id, queue)
        else:
            logger.warning("a doorbell was dropped: the broker is slow", extra={"job_id": job_id})

    def _rings_enough(self, queue: str) -> bool:
        with self._counting:
            second = int(time.monotonic())
            if second != self._second:
                self._second = second
                self._rung.clear()
            self._rung[queue] += 1
            return self._rung[queue] > MAX_RINGS_A_SECOND

    def _send(self, celery: Celery, job_id: str, queue: str) -> None:
        try:
            celery.send_task(RUN_JOB_TASK, args=[job_id], queue=queue, retry=False, ignore_result=True)
        except Exception as error:  # noqa: BLE001 - the thread's boundary; every broker driver has other errors
            logger.warning("no doorbell was sent, the workers will poll the job: %s", error, extra={"job_id": job_id})
        finally:
            self._room.release()

    def is_reachable(self) -> bool:
        """Return whether the broker accepts a connection within `SEND_SECONDS`; true without a broker.

        One caller checks, at most every `CHECK_SECONDS`; concurrent callers get the previous result. Anybody may
        ask without a key, and waiting callers would occupy all request threads.
        """
        if self._celery is None:
            return True
        if time.monotonic() >= self._check_at and self._checking.acquire(blocking=False):
            try:
                self._was_reachable = _connects(self._celery)
                self._check_at = time.monotonic() + CHECK_SECONDS
            finally:
                self._checking.release()
        return self._was_reachable

    def close(self) -> None:
        """Send the waiting messages and stop."""
        self._thread.shutdown(wait=True)
        if self._celery is not None:
            self._celery.close()


def _producer(broker_url: str) -> Celery:
    app = Celery("trd-producer", set_as_current=False)
    app.conf.update(
        broker_url=broker_url,
        broker_transport_options=redis_options(
            broker_url, connect_seconds=SEND_SECONDS, read_seconds=SEND_SECONDS, max_retries=0
        ),
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        broker_connection_timeout=SEND_SECONDS,
        broker_connection_retry=False,
        broker_pool_limit=1,
    )
    return app


def _connects(celery: Celery) -> bool:
    try:
        with celery.connection_for_write(connect_timeout=SEND_SECONDS) as connection:
            connection.ensure_connection(max_retries=1, timeout=SEND_SECONDS)
    except (OperationalError, OSError):
        return False
    return True
