"""A bell that is rung again: once, on both brokers, and in vain without harm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from celery import Celery

from contract.messages import RUN_JOB_TASK
from tests.servers import free_port
from worker.celery_app import make_app, ring_once
from worker.settings import WorkerSettings


def worker_app(broker_url: str | None, data_dir: Path) -> Celery:
    settings = WorkerSettings(data_dir=data_dir, broker_url=broker_url, storage_url="memory://")
    return make_app(settings)


@pytest.fixture(params=["embedded", "redis"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Celery]:
    """A worker's application on each broker."""
    with worker_app(request.getfixturevalue("redis_url") if request.param == "redis" else None, tmp_path) as made:
        yield made


def take(app: Celery, queue: str) -> list[tuple[str, list[str]]]:
    """Take all messages from the queue: task and arguments."""
    found = []
    with app.connection_for_read() as connection:
        simple = connection.SimpleQueue(queue)
        with suppress(simple.Empty):
            while True:
                message = simple.get(timeout=0.5)
                message.ack()
                found.append((message.headers["task"], message.payload[0]))
        simple.close()
    return found


def test_one_message_is_enough_for_a_queue(app: Celery) -> None:
    ring_once(app, "job_a", "trd-default")
    ring_once(app, "job_b", "trd-default")
    ring_once(app, "job_c", "trd-default-8")
    assert take(app, "trd-default") == [(RUN_JOB_TASK, ["job_a"])]
    assert take(app, "trd-default-8") == [(RUN_JOB_TASK, ["job_c"])]
    ring_once(app, "job_b", "trd-default")
    assert take(app, "trd-default") == [(RUN_JOB_TASK, ["job_b"])]


def test_a_broker_that_is_away_is_left_alone_soon(tmp_path: Path) -> None:
    with worker_app(f"redis://127.0.0.1:{free_port()}/0", tmp_path) as app:
        begun_at = time.monotonic()
        ring_once(app, "job_a", "trd-default")
        assert time.monotonic() - begun_at < 15


def test_tasks_are_acknowledged_early_and_never_wait_behind_one_another(app: Celery) -> None:
    assert not app.conf.task_acks_late
    assert app.conf.task_ignore_result
    assert (app.conf.worker_pool, app.conf.worker_concurrency, app.conf.worker_prefetch_multiplier) == ("threads", 1, 1)
    assert app.conf.worker_disable_prefetch == app.conf.broker_url.startswith("redis")
    assert app.conf.accept_content == ["json"]
