"""``celery -A worker.celery_app worker``: the worker's settings and wiring.

A message is a doorbell: it carries a job's id, is acknowledged before its task runs, has no result and is never
retried. A worker finds its jobs in the database, with or without a broker.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery, bootsteps, signals  # type: ignore[import-untyped]
from kombu.exceptions import OperationalError

from contract.json_logs import JsonFormatter
from contract.messages import RUN_JOB_TASK, redis_options
from contract.model_catalog import catalog_warning
from contract.settings import make_private_folder
from contract.tracing import start_tracing, stop_tracing
from worker import metrics
from worker.attempt import Slot
from worker.doorbells import check_messages
from worker.machine_check import start_machine_check
from worker.reaper import make_reaper
from worker.settings import SHUTDOWN_MARGIN_SECONDS, WorkerSettings
from worker.supervisor import make_poller, run_next
from worker.webhooks.sender import make_sender

logger = logging.getLogger(__name__)

EMBEDDED_BROKER_URL = "memory://"
"""Celery needs a broker. This one reaches no other process: in embedded mode the poller finds the jobs."""
CONNECT_SECONDS = 5.0


def make_app(settings: WorkerSettings) -> Celery:
    """Return the Celery application of a worker."""
    check_messages()
    broker_url = settings.broker_url or EMBEDDED_BROKER_URL
    app = Celery("trd-worker")
    app.conf.update(
        broker_url=broker_url,
        broker_transport_options=redis_options(broker_url, connect_seconds=CONNECT_SECONDS, read_seconds=30.0),
        task_serializer="json",
        accept_content=["json"],
        task_acks_late=False,
        task_ignore_result=True,
        task_default_queue=settings.queues[0],
        task_queues={name: {"exchange": name, "routing_key": name} for name in settings.queues},
        # Threads: the consumer must answer while a task runs for hours, and the work is done by a child process.
        worker_pool="threads",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        # A prefetched doorbell would wait behind the running job although another worker is free. Redis only.
        worker_disable_prefetch=broker_url.startswith("redis"),
        worker_hijack_root_logger=True,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # If the broker is down the worker polls the database, and connects when it can.
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=CONNECT_SECONDS,
    )
    return app


slot = Slot(WorkerSettings.of_process())
app = make_app(slot.settings)


@app.task(name=RUN_JOB_TASK)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    """Run the first waiting job, which may be another one than `job_id`; do nothing if none waits."""
    run_next(slot)


def ring_once(app: Celery, job_id: str, queue: str) -> None:
    """Send a doorbell unless one waits in the queue already; do nothing if the broker is down."""
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=app.conf.broker_connection_timeout)
            _, num_waiting, _ = connection.default_channel.queue_declare(queue, durable=True, auto_delete=False)
            if num_waiting == 0:
                app.send_task(RUN_JOB_TASK, args=[job_id], queue=queue, connection=connection, retry=False)
    except (OperationalError, OSError) as error:
        logger.info("no doorbell was sent for %s, the broker is down: %s", job_id, error)


class Threads(bootsteps.StartStopStep):  # type: ignore[misc]
    """The poller, the reaper and the sender of webhooks: started before the worker connects to the broker, stopped
    before its pool."""

    requires = frozenset({"celery.worker.components:Pool"})

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        reaper = make_reaper(slot, lambda job_id, queue: ring_once(app, job_id, queue))
        self._threads = [make_poller(slot), reaper, make_sender(slot)]

    def start(self, worker: Any) -> None:
        start_tracing("trd-worker")
        make_private_folder(slot.settings.data_dir)
        if warning := catalog_warning(slot.catalog()):
            logger.warning(warning)
        if slot.settings.check_machine:
            start_machine_check(slot)
        metrics.serve(slot.settings)
        for thread in self._threads:
            thread.start()

    def stop(self, worker: Any) -> None:
        """Stop the running job at its next step boundary: its checkpoint is stored and the job is queued again."""
        slot.stopping.set()
        for thread in self._threads:
            thread.join(slot.settings.stop_grace_seconds + SHUTDOWN_MARGIN_SECONDS)
        slot.close()
        stop_tracing()


app.steps["worker"].add(Threads)


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _stop_at_once(**_: Any) -> None:
    """Claim no more jobs after the first signal; the consumer stops later."""
    slot.stopping.set()


@signals.after_setup_logger.connect  # type: ignore[untyped-decorator]
@signals.after_setup_task_logger.connect  # type: ignore[untyped-decorator]
def _log_json(logger: logging.Logger, **_: Any) -> None:
    for handler in logger.handlers:
        handler.setFormatter(JsonFormatter(worker=slot.name))


@signals.celeryd_init.connect  # type: ignore[untyped-decorator]
def _print_no_banner(instance: Any, **_: Any) -> None:
    """Suppress Celery's banner, which is not a log line."""
    instance.quiet = True
