"""The worker's loop: claim a job, stage it, run the engine, record what it reports, decide how the attempt ended.

The errors of an attempt end here: they become the job's failure, and the worker continues.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import dataclass, replace

from opentelemetry.trace import StatusCode

from contract.events import NewEvent, notice
from contract.tracing import continued, tracer
from worker import leftovers, staging
from worker.attempt import Attempt, Slot
from worker.chats.serve import serve_chats
from worker.engine_log import LogRelay
from worker.engine_process import EngineProcess
from worker.failures import (
    AttemptEnd,
    ChildExit,
    EndKind,
    Failure,
    JobFailedError,
    classify_exit,
    count_oom_kills,
    file_failure_code,
    full_disk,
    hang_in_log,
    log_tail,
    public_text,
)
from worker.lease import LeaseLostError, claim, finish
from worker.machine_check import offer_of
from worker.metrics import ATTEMPTS
from worker.periodic import Periodic
from worker.progress import PASSING_DATABASE_ERRORS, Progress
from worker.spans import record_wait
from worker.staging import Staged
from worker.trackers.supervise import Trackers
from worker.uploads import CheckpointUploads

logger = logging.getLogger(__name__)

_LOGGED_FAILURES = (
    *("engine_crashed", "out_of_memory", "host_out_of_memory", "gpu_fault", "collective_timeout", "internal_error"),
)
"""Failures whose reason may be in the engine's log."""
WATCH_SECONDS = 0.2
"""Interval at which the child and the orders for it are checked; a check never waits for the database."""


def make_poller(slot: Slot) -> Periodic:
    """Return a thread that runs all waiting jobs, one after the other, and polls for new ones."""

    def run_all_waiting() -> None:
        while run_next(slot):
            pass

    return slot.repeat("poller", run_all_waiting, slot.settings.poll_seconds)


def run_next(slot: Slot) -> bool:
    """Claim the first waiting job that this worker can run and run one attempt at it, or answer chats if none waits;
    return False if there is nothing to do, or the slot is taken."""
    with slot.taken() as is_mine:
        if not is_mine or slot.stopping.is_set():
            return False
        offer = offer_of(slot)
        with slot.database.write() as session:
            lease = claim(session, offer, worker=slot.name, lease_seconds=slot.settings.lease_seconds)
        if lease is None:
            return serve_chats(slot)
        with continued(lease.origin, job_id=lease.job_id, attempt=lease.attempt):
            run_attempt(Attempt(slot, lease))
        return True


def run_attempt(attempt: Attempt) -> None:
    """Run a claimed job until its child has ended and everything is recorded, or until the lease is lost."""
    logger.info("%s begins", attempt)
    record_wait(attempt)
    ids: dict[str, str | int] = {
        "trd.job_id": attempt.job_id,
        "trd.attempt": attempt.number,
        "trd.worker": attempt.slot.name,
    }
    try:
        with tracer.start_as_current_span("attempt", attributes=ids) as span, attempt.heartbeat:
            end = _stage_and_run(attempt)
            span.set_attribute("trd.outcome", end.kind)
            if end.failure is not None:
                span.set_status(StatusCode.ERROR, end.failure.code)
            status = _finish(attempt, end)
        logger.info("%s: %s; the job is %s", attempt, end.kind, status)
        ATTEMPTS.labels(end.kind, end.failure.code if end.failure else "").inc()
    except LeaseLostError as error:
        ATTEMPTS.labels("superseded", "").inc()
        logger.warning("%s was given up: %s", attempt, error)
    finally:
        # Also after a lost lease: the end may have been recorded, and only the answer to its commit lost.
        leftovers.collect_of_ended(attempt.database, attempt.storage, attempt.job_id)
        staging.clear(attempt.folder)


def _stage_and_run(attempt: Attempt) -> AttemptEnd:
    """Stage the inputs and run the child. Every error becomes the attempt's end, except `LeaseLostError`."""
    try:
        staging.clear_dead_attempts(attempt.database, attempt.settings.scratch_dir)
        staged = staging.stage(attempt)
        if attempt.must_stop():
            return AttemptEnd(EndKind.STOPPED)
        return _run_child(attempt, staged)
    except LeaseLostError:
        raise
    except JobFailedError as error:
        return AttemptEnd(EndKind.FAILED, failure=error.failure)
    except PASSING_DATABASE_ERRORS as error:
        logger.warning("%s lost the database: %s", attempt, error)
        return AttemptEnd(EndKind.LOST, failure=Failure("worker_lost", "The worker lost the database."))
    except Exception as error:
        logger.exception("%s failed in the worker", attempt)
        code = "disk_full" if file_failure_code(error) == "disk_full" else "internal_error"
        failure = Failure(code, f"The worker failed: {type(error).__name__}: {public_text(error)}")
        return AttemptEnd(EndKind.FAILED, failure=failure)


def _run_child(attempt: Attempt, staged: Staged) -> AttemptEnd:
    """Run the child to its end. On return its events are in the database and its checkpoints in the storage."""
    spec = staged.spec
    oom_kills_before = count_oom_kills()
    uploads = CheckpointUploads(attempt, keep=spec.checkpoints.keep, resumed_step=staged.resumed_step)
    progress = Progress(attempt, on_checkpoint=uploads.submit)
    command = attempt.slot.command_for(attempt.folder, spec.devices)
    process = EngineProcess.start(command, attempt.folder, devices=spec.devices)
    # Left in reverse order: the child has ended, then its events are written, then its checkpoints stored, and last the
    # trackers get the rest.
    with Trackers(attempt, spec), uploads, progress, closing(LogRelay(attempt.folder / "engine.log")), process:
        watched = _watch(attempt, process, progress)
        disk_failure = full_disk(attempt.folder)  # now: checkpoints that are stored make room
    end = classify_exit(
        ChildExit(
            code=watched.exit_code,
            was_asked_to_stop=watched.was_asked_to_stop,
            was_oom_killed=(count_oom_kills() or 0) > (oom_kills_before or 0),
            has_finished=progress.finished is not None,
            reported=Failure(progress.failed.code, progress.failed.message) if progress.failed else None,
        )
    )
    if end.failure is not None and end.failure.code == "engine_crashed":
        end = replace(end, failure=hang_in_log(attempt.folder) or disk_failure or end.failure)
    summary = progress.finished.summary if progress.finished else None
    return replace(end, summary=summary, circumstances=_circumstances(attempt, end, watched))


@dataclass(frozen=True)
class _Watched:
    exit_code: int
    was_asked_to_stop: bool
    missed_grace: bool


def _watch(attempt: Attempt, process: EngineProcess, progress: Progress) -> _Watched:
    """Wait for the child, forward a request to stop, and kill the child if it must end at once."""
    stop_asked_at: float | None = None
    missed_grace = False
    while (exit_code := process.poll()) is None:
        if attempt.is_lost() or progress.is_broken:
            process.kill()
        elif stop_asked_at is None and attempt.must_stop():
            process.ask_to_stop()
            stop_asked_at = time.monotonic()
        elif stop_asked_at is not None and time.monotonic() - stop_asked_at > attempt.settings.stop_grace_seconds:
            process.kill()
            missed_grace = True
        time.sleep(WATCH_SECONDS)
    if attempt.is_lost():
        raise LeaseLostError("the lease was lost, or the database was unreachable until it expired")
    # A service manager that shuts down may signal the child together with this process.
    was_asked_to_stop = stop_asked_at is not None or attempt.slot.stopping.is_set()
    return _Watched(exit_code, was_asked_to_stop, missed_grace)


def _circumstances(attempt: Attempt, end: AttemptEnd, watched: _Watched) -> tuple[NewEvent, ...]:
    """Return events that explain an end which the child itself did not explain."""
    events: list[NewEvent] = []
    if watched.missed_grace:
        message = "The engine reached no step boundary within the grace period and was killed."
        events.append(notice("warn", "stop_grace_exceeded", message))
    if end.failure is not None and end.failure.code in _LOGGED_FAILURES:
        tail = log_tail(attempt.folder / "engine.log")
        events.append(notice("error", "engine_log", "The end of the engine's log.", log=tail, exit_code=end.exit_code))
    return tuple(events)


def _finish(attempt: Attempt, end: AttemptEnd) -> str:
    """Record the end. If the database is unreachable, retry until the lease expires."""
    while True:
        try:
            return finish(attempt.database, attempt.lease, end, max_attempts=attempt.settings.max_attempts)
        except PASSING_DATABASE_ERRORS as error:
            if attempt.is_lost():
                raise LeaseLostError(f"the end could not be recorded: {error}") from error
            logger.warning("the end of %s waits for the database: %s", attempt, error)
            time.sleep(attempt.settings.progress_seconds)
