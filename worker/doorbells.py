"""Takes doorbells from Redis and drops, with a log line, whatever is not one.

kombu and Celery trust the broker: a message that they cannot read raises in the consumer, which ends the worker, and
the message may come again after the restart. A doorbell only carries a job's id, so that id is all that is taken from a
message; everything else that Celery sees of it is written here.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import uuid
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis

from contract.messages import RUN_JOB_TASK

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 2**16
NOT_A_DOORBELL = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Errors that reading another message raises."""
_REPLIES = ".reply.celery.pidbox"
_JOB_ID = re.compile(r"job_\w{1,64}", re.ASCII)


class Channel(redis.Channel):
    """A channel whose consumers get doorbells and control messages only."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except self.connection_errors:
            raise
        except NOT_A_DOORBELL as error:  # not JSON, or a value of a type that kombu makes of {"__type__": …}
            logger.warning("a message that is no doorbell was dropped: %s", _shown(error))
            return True

    def _deliver_fanout_message(self, message: Any, exchange: str) -> Any:
        try:
            return super()._deliver_fanout_message(message, exchange)  # type: ignore[no-untyped-call]
        except self.connection_errors:
            raise
        except Exception as error:  # noqa: BLE001 - from anybody who reaches the broker, in any shape
            logger.warning("a control message was dropped: %s", _shown(error))
            return True


class Transport(redis.Transport):
    """Redis, with messages checked before Celery sees them."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        is_control = any(queue in channel._fanout_queues for channel in self.channels)
        if is_control or queue.endswith(_REPLIES):  # commands such as celery inspect read replies
            super()._deliver(message, queue)  # type: ignore[no-untyped-call]
            return
        try:
            doorbell = _doorbell(_job_id(message), queue)
        except NOT_A_DOORBELL as error:
            logger.warning("a message in %s that is no doorbell was dropped: %s", queue, _shown(error))
            return
        super()._deliver(doorbell, queue)  # type: ignore[no-untyped-call]


def check_messages() -> None:
    """Let connections to Redis of this process use the checked transport."""
    TRANSPORT_ALIASES["redis"] = TRANSPORT_ALIASES["rediss"] = "worker.doorbells:Transport"


def _job_id(message: Any) -> str:
    """Return the job id in a message as kombu wrote it; raises one of `NOT_A_DOORBELL` for other messages."""
    if message["headers"]["task"] != RUN_JOB_TASK:
        raise ValueError(f"task {message['headers']['task']!r}")
    if len(message["body"]) > MAX_MESSAGE_BYTES:
        raise ValueError("it is too long")
    (job_id,), *_ = json.loads(base64.b64decode(message["body"], validate=True))
    if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id):
        raise ValueError("it holds no job id")
    return job_id


def _doorbell(job_id: str, queue: str) -> dict[str, Any]:
    """Return the message that Celery would write for the job."""
    task_id = str(uuid.uuid4())
    body = json.dumps([[job_id], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": RUN_JOB_TASK, "id": task_id, "root_id": task_id, "lang": "py", "retries": 0},
        "properties": {
            "body_encoding": "base64",
            "correlation_id": task_id,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "delivery_mode": 2,
            "delivery_tag": task_id,
            "priority": 0,
        },
    }


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
