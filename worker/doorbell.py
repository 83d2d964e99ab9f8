"""Ringing a doorbell again, for the reaper."""

from __future__ import annotations

import logging

from celery import Celery  # type: ignore[import-untyped]
from kombu.exceptions import OperationalError

from contract.messages import RUN_JOB_TASK

logger = logging.getLogger(__name__)


def ring_once(app: Celery, job_id: str, queue: str) -> None:
    """Send the message, unless one waits in the queue already. A broker that is away is left alone."""
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=app.conf.broker_connection_timeout)
            _, num_waiting, _ = connection.default_channel.queue_declare(queue, durable=True, auto_delete=False)
            if num_waiting == 0:
                app.send_task(RUN_JOB_TASK, args=[job_id], queue=queue, connection=connection, retry=False)
    except (OperationalError, OSError) as error:
        logger.info("no doorbell for %s: the broker is away: %s", job_id, error)
