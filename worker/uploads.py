"""Stores checkpoints while the child continues: files first, then their rows, then old ones are removed."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Self

from contract.events import append_events, notice
from contract.storage_keys import checkpoint_prefix
from contract.tracing import tracer
from worker import repository
from worker.attempt import Attempt
from worker.engine_events import CheckpointEvent
from worker.failures import JobFailedError, file_failure_code, public_text
from worker.manifest import CheckpointCorruptError, store_checkpoint
from worker.metrics import CHECKPOINT_BYTES, CHECKPOINT_SECONDS
from worker.progress import PASSING_DATABASE_ERRORS

logger = logging.getLogger(__name__)

RETRY_SECONDS = (1.0, 5.0, 15.0, 60.0, 120.0)
"""Delays between the tries at one upload. The run continues meanwhile, but its worker waits for the last uploads.

An outage that has lasted for all of them will probably continue: until it ends, an older checkpoint gets one try, and
only the newest is retried. Otherwise a store that stays full would hold the worker that long for each checkpoint. It
does not happen at once, because every checkpoint is to be stored if the outage is short, even those that are removed
soon.
"""

RETRIED_ERRORS = (OSError, CheckpointCorruptError, *PASSING_DATABASE_ERRORS)


class CheckpointUploads:
    """A context manager whose thread stores an attempt's checkpoints in order.

    Leaving the context waits for them. It raises `JobFailedError` if the newest could not be stored. An older one that
    could not be stored is a notice to the user, because the next one replaces it.
    """

    def __init__(self, attempt: Attempt, *, keep: int, resumed_step: int | None) -> None:
        self._attempt = attempt
        self._keep = keep
        self._resumed_step = resumed_step
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"uploads-{attempt.job_id}")
        self._newest: Future[None] | None = None
        self._newest_step = -1
        self._submitted = threading.Condition()
        self._failing_since: float | None = None
        """When the uploads began to fail; None if the last one succeeded."""
        self._local_copy: Path | None = None
        self._stored: dict[str, str] = {}
        """Keys of the newest stored checkpoint's files, by sha256."""

    def submit(self, event: CheckpointEvent) -> None:
        """Queue the checkpoint for storing."""
        with self._submitted:
            self._newest_step = event.step
            self._submitted.notify()
        self._newest = self._thread.submit(copy_context().run, self._store, event)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._thread.shutdown(wait=True)
        if self._newest is not None and error is None:
            self._newest.result()
            try:
                self._remove_old(protected_step=None)
            except PASSING_DATABASE_ERRORS as failure:
                logger.warning("an old checkpoint of %s could not be removed: %s", self._attempt.job_id, failure)

    def _store(self, event: CheckpointEvent) -> None:
        """Store one checkpoint, with retries; raises `JobFailedError` and `LeaseLostError`."""
        try:
            self._store_with_retries(event)
        except RETRIED_ERRORS as error:
            message = f"The checkpoint of step {event.step} was not stored: {public_text(error)}"
            self._give_up(event, message)
            raise JobFailedError(file_failure_code(error), message) from error

    def _store_with_retries(self, event: CheckpointEvent) -> None:
        for wait_seconds in (*RETRY_SECONDS, None):
            try:
                self._store_once(event)
            except RETRIED_ERRORS as error:
                logger.warning("checkpoint %d of %s: %s", event.step, self._attempt.job_id, error)
                self._failing_since = self._failing_since or time.monotonic()
                if wait_seconds is None or self._attempt.is_lost() or self._is_hopeless(event):
                    raise
            else:
                self._failing_since = None
                return
            with self._submitted:
                self._submitted.wait_for(lambda: self._is_hopeless(event), wait_seconds)

    def _is_hopeless(self, event: CheckpointEvent) -> bool:
        """Return whether the outage is a long one and a newer checkpoint waits, which replaces this one."""
        seconds = 0.0 if self._failing_since is None else time.monotonic() - self._failing_since
        return event.step < self._newest_step and seconds >= sum(RETRY_SECONDS)

    def _give_up(self, event: CheckpointEvent, message: str) -> None:
        """Tell the user, and remove what is stored of the checkpoint; of an older one the local copy, too."""
        prefix = self._prefix(event)
        with self._attempt.write() as session:
            append_events(session, self._attempt.job_id, notice("warn", "checkpoint_not_stored", message))
            stored = repository.list_checkpoints(session, self._attempt.job_id)
        # A row names the files if only the answer to its commit was lost.
        if all(checkpoint.storage_prefix != prefix for checkpoint in stored):
            self._remove_files([prefix])
        if event.step < self._newest_step:
            shutil.rmtree(self._attempt.run_dir / event.path, ignore_errors=True)

    def _prefix(self, event: CheckpointEvent) -> str:
        return checkpoint_prefix(self._attempt.job_id, self._attempt.number, event.step)

    @tracer.start_as_current_span("store checkpoint")
    def _store_once(self, event: CheckpointEvent) -> None:
        began_at = time.monotonic()
        prefix = self._prefix(event)
        folder = self._attempt.run_dir / event.path
        manifest, sha256 = store_checkpoint(
            self._attempt.storage, folder, prefix, interrupted=self._attempt.is_lost, stored=self._stored
        )
        with self._attempt.write() as session:
            replaced = repository.add_checkpoint(session, self._attempt.lease, prefix, manifest, sha256)
        CHECKPOINT_SECONDS.observe(time.monotonic() - began_at)
        CHECKPOINT_BYTES.inc(manifest.num_bytes)
        self._remove_files(replaced)
        self._remove_old(protected_step=self._resumed_step)
        if self._local_copy not in (None, folder):
            shutil.rmtree(self._local_copy, ignore_errors=True)
        self._local_copy = folder

    def _remove_old(self, *, protected_step: int | None) -> None:
        with self._attempt.write() as session:
            prefixes = repository.remove_old_checkpoints(
                session, self._attempt.lease, keep=self._keep, protected_step=protected_step
            )
        self._remove_files(prefixes)

    def _remove_files(self, prefixes: list[str]) -> None:
        for prefix in prefixes:
            try:
                self._attempt.storage.remove_tree(prefix)
            except OSError as error:
                logger.warning("the files of %s could not be removed: %s", prefix, error)
