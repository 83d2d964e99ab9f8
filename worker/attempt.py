"""One attempt at a job, start to end: the worker's loop.

Claim, stage, run the child, record what it says, decide how it ended. Errors of the attempt's own end
here: they become the job's failure, and the worker goes on.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

from contract.events import NewEvent, notice
from worker import leftovers, staging
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
    log_tail,
    shown,
)
from worker.heartbeat import Heartbeat, Order
from worker.lease import Lease, LeaseLostError, claim, finish
from worker.periodic import Periodic
from worker.progress import PASSING_DATABASE_ERRORS, Progress
from worker.repository import schema_is_ready
from worker.slot import Slot
from worker.staging import Staged
from worker.uploads import CheckpointUploads

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.2
"""How often the child and its orders are looked at; never waits for the database."""


def make_poller(slot: Slot) -> Periodic:
    """Return a thread that runs all waiting jobs, one after the other, and polls for new ones."""

    def run_all_waiting() -> None:
        while run_next(slot):
            pass

    return Periodic(
        "poller",
        run_all_waiting,
        seconds=slot.settings.poll_seconds,
        stopping=slot.stopping,
        ready=lambda: schema_is_ready(slot.database),
    )


def run_next(slot: Slot) -> bool:
    """Claim the next waiting job and see it through one attempt; false where there is none, or no room."""
    with slot.taken() as is_mine:
        if not is_mine or slot.stopping.is_set():
            return False
        settings = slot.settings
        with slot.database.write() as session:
            lease = claim(session, queues=settings.queues, worker=slot.name, lease_seconds=settings.lease_seconds)
        if lease is None:
            return False
        run_attempt(slot, lease)
        return True


def run_attempt(slot: Slot, lease: Lease) -> None:
    """Run a claimed job until its child has ended and all is recorded, or until the lease is lost."""
    logger.info("attempt %d of %s begins", lease.attempt, lease.job_id)
    settings, folder = slot.settings, slot.attempt_folder(lease)
    heartbeat = Heartbeat(
        slot.database, lease, lease_seconds=settings.lease_seconds, heartbeat_seconds=settings.heartbeat_seconds
    )
    try:
        with heartbeat:
            end = _ended(slot, lease, folder, heartbeat)
            status = _finish(slot, lease, end, heartbeat)
        leftovers.collect_of_ended(slot.database, slot.storage, lease.job_id)
        logger.info("attempt %d of %s: %s; the job is %s", lease.attempt, lease.job_id, end.kind, status)
    except LeaseLostError as error:
        logger.warning("attempt %d of %s was given up: %s", lease.attempt, lease.job_id, error)
    finally:
        staging.clear(folder)


def _ended(slot: Slot, lease: Lease, folder: Path, heartbeat: Heartbeat) -> AttemptEnd:
    """Stage and run; whatever goes wrong is how the attempt ended. Raises `LeaseLostError` alone."""
    try:
        staging.clear_dead_attempts(slot.database, slot.settings.scratch_dir)
        staged = staging.stage(
            slot.database, slot.storage, slot.catalog(), slot.settings.teacher_endpoints, lease, folder
        )
        if slot.stopping.is_set() or heartbeat.order is Order.STOP:
            return AttemptEnd(EndKind.STOPPED)
        return _run_child(slot, lease, folder, staged, heartbeat)
    except LeaseLostError:
        raise
    except JobFailedError as error:
        return AttemptEnd(EndKind.FAILED, failure=error.failure)
    except PASSING_DATABASE_ERRORS as error:
        logger.warning("attempt %d of %s lost the database: %s", lease.attempt, lease.job_id, error)
        return AttemptEnd(EndKind.LOST, failure=Failure("worker_lost", "The worker lost the database."))
    except Exception as error:
        logger.exception("attempt %d of %s failed in the worker", lease.attempt, lease.job_id)
        code = "disk_full" if file_failure_code(error) == "disk_full" else "internal_error"
        failure = Failure(code, f"The worker failed: {type(error).__name__}: {shown(error)}")
        return AttemptEnd(EndKind.FAILED, failure=failure)


@dataclass(frozen=True)
class _Watched:
    exit_code: int
    was_asked_to_stop: bool
    missed_grace: bool


def _run_child(slot: Slot, lease: Lease, folder: Path, staged: Staged, heartbeat: Heartbeat) -> AttemptEnd:
    """Run the child to its end; on return all it said is in the database and all it saved is stored."""
    run_dir, devices = folder / "run", staged.spec.devices
    oom_kills_before = count_oom_kills()
    uploads = CheckpointUploads(
        slot.database,
        slot.storage,
        lease,
        run_dir,
        keep=staged.spec.checkpoints.keep,
        resumed_step=staged.resumed_step,
        give_up=heartbeat.has_lost,
    )
    progress = Progress(
        slot.database,
        lease,
        run_dir,
        seconds=slot.settings.progress_seconds,
        give_up=heartbeat.has_lost,
        on_checkpoint=uploads.submit,
    )
    process = EngineProcess.start(slot.command_for(folder, devices), folder, devices=devices)
    with uploads, progress, process:  # left in turn: no child, then all it said, then all it saved
        watched = _watch(process, slot, heartbeat, progress)
    end = classify_exit(
        ChildExit(
            code=watched.exit_code,
            was_asked_to_stop=watched.was_asked_to_stop,
            was_oom_killed=(count_oom_kills() or 0) > (oom_kills_before or 0),
            has_finished=progress.finished is not None,
            reported=Failure(progress.failed.code, progress.failed.message) if progress.failed else None,
        )
    )
    summary = progress.finished.summary if progress.finished else None
    return replace(end, summary=summary, circumstances=_circumstances(end, watched, folder))


def _watch(process: EngineProcess, slot: Slot, heartbeat: Heartbeat, progress: Progress) -> _Watched:
    """Wait for the child, pass on what it is told, and kill it when it must go at once."""
    stop_asked_at: float | None = None
    missed_grace = False
    while (exit_code := process.poll()) is None:
        order = heartbeat.order
        if order is Order.KILL or progress.is_broken:
            process.kill()
        elif stop_asked_at is None and (order is Order.STOP or slot.stopping.is_set()):
            process.ask_to_stop()
            stop_asked_at = time.monotonic()
        elif stop_asked_at is not None and time.monotonic() - stop_asked_at > slot.settings.stop_grace_seconds:
            process.kill()
            missed_grace = True
        time.sleep(WATCH_SECONDS)
    if heartbeat.order is Order.KILL:
        raise LeaseLostError("the lease was lost, or the database stayed away until it ran out")
    # A service manager that shuts down may signal the child together with this process.
    was_asked_to_stop = stop_asked_at is not None or slot.stopping.is_set()
    return _Watched(exit_code, was_asked_to_stop, missed_grace)


def _circumstances(end: AttemptEnd, watched: _Watched, folder: Path) -> tuple[NewEvent, ...]:
    """What explains an end that the child itself did not explain."""
    events: list[NewEvent] = []
    if watched.missed_grace:
        events.append(notice("warn", "stop_grace_exceeded", "The engine reached no boundary in time and was killed."))
    if end.failure is not None and end.failure.code in ("engine_crashed", "out_of_memory", "internal_error"):
        tail = log_tail(folder / "engine.log")
        events.append(notice("error", "engine_log", "The end of the engine's log.", log=tail, exit_code=end.exit_code))
    return tuple(events)


def _finish(slot: Slot, lease: Lease, end: AttemptEnd, heartbeat: Heartbeat) -> str:
    """Record the end; a database that is away is waited for until the lease runs out."""
    while True:
        try:
            return finish(slot.database, lease, end, max_attempts=slot.settings.max_attempts)
        except PASSING_DATABASE_ERRORS as error:
            if heartbeat.order is Order.KILL:
                raise LeaseLostError(f"the end could not be recorded: {error}") from error
            logger.warning("the end of %s waits for the database: %s", lease.job_id, error)
            time.sleep(slot.settings.progress_seconds)
