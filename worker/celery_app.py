"""``celery -A worker.celery_app worker``: settings and wiring.

A message is a doorbell. It is acknowledged before its task runs, carries a job's id and nothing else, has
no result and is never retried; a worker without a broker finds its work in the database.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery, bootsteps, signals  # type: ignore[import-untyped]

from contract.broker import broker_settings, make_broker_folders
from contract.json_logs import JsonFormatter
from contract.model_catalog import unpinned_warning
from worker.doorbell import ring_once
from worker.poller import make_poller
from worker.reaper import make_reaper
from worker.settings import SHUTDOWN_MARGIN_SECONDS, WorkerSettings
from worker.slot import Slot

logger = logging.getLogger(__name__)


def make_app(settings: WorkerSettings) -> Celery:
    """The Celery application of a worker."""
    broker = broker_settings(settings.broker_url, settings.data_dir)
    app = Celery("trd-worker", include=["worker.tasks"])
    app.conf.update(broker)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        task_ignore_result=True,
        task_default_queue=settings.queues[0],
        task_queues={name: {"exchange": name, "routing_key": name} for name in settings.queues},
        # Threads, so that the consumer answers while a task runs for hours; the work is a child's anyway.
        worker_pool="threads",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        # A doorbell that waited here while a job runs would not be heard by a free worker. Redis alone can.
        worker_disable_prefetch=broker["broker_url"].startswith("redis"),
        worker_hijack_root_logger=True,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Without a broker the worker stays, works by polling, and connects when it can.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=5,
    )
    if broker["broker_url"].startswith("filesystem"):
        app.conf.broker_transport = "worker.embedded_broker:Transport"
    return app


slot = Slot(WorkerSettings.from_environment())
app = make_app(slot.settings)


class Threads(bootsteps.StartStopStep):  # type: ignore[misc]
    """The poller and the reaper: begun before the broker is looked for, ended before the pool is."""

    requires = frozenset({"celery.worker.components:Pool"})

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._threads = [make_poller(slot), make_reaper(slot, lambda job_id, queue: ring_once(app, job_id, queue))]

    def start(self, worker: Any) -> None:
        make_broker_folders(broker_settings(slot.settings.broker_url, slot.settings.data_dir))
        if warning := unpinned_warning(slot.catalog()):
            logger.warning(warning)
        for thread in self._threads:
            thread.start()

    def stop(self, worker: Any) -> None:
        """Stop the running job at a boundary; its checkpoint is stored, and the job queued again."""
        slot.stopping.set()
        for thread in self._threads:
            thread.join(slot.settings.stop_grace_seconds + SHUTDOWN_MARGIN_SECONDS)
        slot.close()


app.steps["worker"].add(Threads)


def _stop_at_once(**_: Any) -> None:
    """The signal comes first, before the consumer has wound down."""
    slot.stopping.set()


signals.worker_shutting_down.connect(_stop_at_once)


def _log_json(logger: logging.Logger, **_: Any) -> None:
    for handler in logger.handlers:
        handler.setFormatter(JsonFormatter())


signals.after_setup_logger.connect(_log_json)
signals.after_setup_task_logger.connect(_log_json)
