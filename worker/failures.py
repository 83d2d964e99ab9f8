"""Why an attempt ended, and the job's next status.

`final_status` decides in both cases: if the attempt's worker ends it, and if the reaper does. Only the readers of the
kernel's counter and of the engine's log touch anything outside.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from contract.error_codes import ERROR_CODES, ErrorCode
from contract.events import NewEvent
from contract.job_state import AttemptStatus, JobStatus
from contract.json_logs import redacted

FINISHED_EXIT_CODE = 0
STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later
DISK_FULL_EXIT_CODE = 74  # EX_IOERR: there was no room for the reason

MAX_MESSAGE_CHARACTERS = 2_000
LOG_TAIL_BYTES = 4_096
FULL_DISK_BYTES = 2**20
"""A disk with less room is full: an event and the end of a log may still fit."""
_DISK_FULL = "The engine ended, and the disk of the worker's data folder is full."


@dataclass(frozen=True)
class Failure:
    """A failure as the user sees it."""

    code: str
    message: str

    @property
    def known(self) -> ErrorCode:
        """The entry of the code, or of `internal_error` if the code is unknown."""
        return ERROR_CODES.get(self.code, ERROR_CODES["internal_error"])


class JobFailedError(Exception):
    """The supervisor's work for a job failed for a reason that the user can see."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(code, message)


def file_failure_code(error: BaseException) -> str:
    """Return the error code for a failed access to the job's files, on this machine or in the storage."""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "disk_full" if is_full else "storage_unavailable"


def public_text(error: BaseException) -> str:
    """Return the error's text for the user. That of a database contains statements and addresses, and is hidden."""
    return "the database refused the write" if isinstance(error, SQLAlchemyError) else str(error)


class EndKind(StrEnum):
    """The four ways in which an attempt ends."""

    FINISHED = "finished"
    STOPPED = "stopped"  # on request of the user, or because the worker shut down
    FAILED = "failed"
    LOST = "lost"  # its lease expired


@dataclass(frozen=True)
class AttemptEnd:
    """How one attempt ended."""

    kind: EndKind
    exit_code: int | None = None
    failure: Failure | None = None
    summary: Mapping[str, Any] | None = None
    """Summary that a finished run reported."""
    circumstances: tuple[NewEvent, ...] = ()
    """Events that explain the end and are recorded with it."""

    @property
    def attempt_status(self) -> AttemptStatus:
        """The status under which the attempt is recorded."""
        return _ATTEMPT_STATUSES[self.kind]


_ATTEMPT_STATUSES = {
    EndKind.FINISHED: AttemptStatus.SUCCEEDED,
    EndKind.STOPPED: AttemptStatus.STOPPED,
    EndKind.FAILED: AttemptStatus.FAILED,
    EndKind.LOST: AttemptStatus.LOST,
}


@dataclass(frozen=True)
class FinalStatus:
    """The job's next status, and the reason if it failed."""

    status: JobStatus
    failure: Failure | None = None


_STATUS_WHEN_STOPPED = {
    JobStatus.CANCELLING: JobStatus.CANCELLED,
    JobStatus.PAUSING: JobStatus.PAUSED,
    JobStatus.RUNNING: JobStatus.QUEUED,
}


def final_status(current: JobStatus, end: AttemptEnd, *, num_without_progress: int, max_attempts: int) -> FinalStatus:
    """Return the job's next status.

    A finished run has succeeded, even if a cancel or pause was requested meanwhile. A requested cancel or pause takes
    effect after a retryable failure; after any other failure the job has failed.
    """
    if end.kind is EndKind.FINISHED:
        return FinalStatus(JobStatus.SUCCEEDED)
    if end.kind is EndKind.STOPPED:
        return FinalStatus(_STATUS_WHEN_STOPPED[current])
    failure = end.failure
    assert failure is not None, "a failed or lost attempt has a failure"
    if not failure.known.retryable:
        return FinalStatus(JobStatus.FAILED, failure)
    if current is JobStatus.RUNNING and num_without_progress >= max_attempts:
        attempts = "One attempt" if num_without_progress == 1 else f"{num_without_progress} attempts in a row"
        message = f"{attempts} ended without a step of progress; the last: {failure.code}: {failure.message}"
        return FinalStatus(JobStatus.FAILED, Failure("crash_loop", message))
    return FinalStatus(_STATUS_WHEN_STOPPED[current])


@dataclass(frozen=True)
class ChildExit:
    """What is known about the engine's exit."""

    code: int
    """Exit code as in `subprocess.Popen.returncode`: negative for a signal."""
    was_asked_to_stop: bool
    was_oom_killed: bool
    """Whether the kernel killed a process for lack of memory while the child ran."""
    has_finished: bool
    """Whether its events report that the run is complete."""
    reported: Failure | None
    """The failure that its events report."""


def classify_exit(child: ChildExit) -> AttemptEnd:
    """Classify the child's exit; a failure that it reported itself takes precedence."""
    # A child that could not handle signals yet, or missed the grace period, was ended by a signal.
    if child.was_asked_to_stop and child.code in (STOPPED_EXIT_CODE, -signal.SIGTERM, -signal.SIGKILL):
        return AttemptEnd(EndKind.STOPPED, child.code)
    if child.code == FINISHED_EXIT_CODE and child.has_finished:
        return AttemptEnd(EndKind.FINISHED, child.code)
    if child.reported is not None and child.reported.code == "worker_lost":  # a machine of several
        return AttemptEnd(EndKind.LOST, child.code, child.reported)
    return AttemptEnd(EndKind.FAILED, child.code, child.reported or _silent_failure(child.code, child.was_oom_killed))


def _silent_failure(exit_code: int, was_oom_killed: bool) -> Failure:
    # If one of several processes is killed, the launcher exits with 1.
    if was_oom_killed and exit_code in (-signal.SIGKILL, 1):
        return Failure(
            "host_out_of_memory", "The kernel killed the engine: the machine's or the container's memory ran out."
        )
    if exit_code == DISK_FULL_EXIT_CODE:
        return Failure("disk_full", _DISK_FULL)
    if exit_code < 0:
        return Failure("engine_crashed", f"The engine was ended by {signal.Signals(-exit_code).name}.")
    if exit_code == STOPPED_EXIT_CODE:
        return Failure("engine_crashed", "The engine stopped without a request to stop.")
    if exit_code == FINISHED_EXIT_CODE:
        return Failure("engine_crashed", "The engine ended without an error before its run was complete.")
    return Failure("engine_crashed", f"The engine ended with exit code {exit_code} without reporting a reason.")


_HANG_IN_LOG = re.compile(r"Rank (\d+)\]\s*Watchdog caught collective operation timeout: .*?OpType=(\w+)")


def hang_in_log(folder: Path) -> Failure | None:
    """Return the hang that ended an attempt, or None.

    NCCL's watchdog writes it into the log and aborts the process: the engine cannot report it.
    """
    found = _HANG_IN_LOG.search(log_tail(folder / "engine.log", num_bytes=2**20))
    if found is None:
        return None
    phase = last_phase(folder / "run")
    message = f"rank {found[1]} waited for the other processes in phase {phase}, in {found[2]}, until NCCL's time limit"
    return Failure("collective_timeout", message)


def full_disk(folder: Path) -> Failure | None:
    """Return the failure of an engine that could not write why it ended, because nothing can be written; or None."""
    if shutil.disk_usage(folder).free > FULL_DISK_BYTES:
        return None
    return Failure("disk_full", _DISK_FULL)


def last_phase(out_dir: Path) -> str:
    """Return the phase that a run was in; its first process reports it."""
    phase = "preparing"
    try:
        with (out_dir / "events.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                event = json.loads(line)
                phase = str(event["phase"]) if event.get("type") == "phase" else phase
    except (OSError, ValueError):  # no events yet, or a line that was cut off
        pass
    return phase


def count_oom_kills() -> int | None:
    """Return how often the kernel killed for lack of memory in this process's cgroup; None if that is unknown."""
    for path in _oom_counters():
        try:
            text = path.read_text(encoding="ascii")
        except OSError:
            continue
        if (found := re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)) is not None:
            return int(found.group(1))
    return None


def _oom_counters() -> list[Path]:
    """Return the files that may have the counter: of cgroup v2 or v1 (the root, in a container), or the machine's."""
    folders = {"0": Path("/sys/fs/cgroup"), "memory": Path("/sys/fs/cgroup/memory")}
    files = {"0": "memory.events", "memory": "memory.oom_control"}
    counters = []
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        number, controllers, group = line.split(":", 2)
        kind = "memory" if "memory" in controllers.split(",") else number
        if kind in folders:
            counters += [folders[kind] / group.lstrip("/") / files[kind], folders[kind] / files[kind]]
    return [*counters, Path("/proc/vmstat")]


def log_tail(path: Path, environment: Mapping[str, str] = os.environ, *, num_bytes: int = LOG_TAIL_BYTES) -> str:
    """Return the end of the engine's log, without the values of variables that are named like secrets."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - num_bytes))
            text = file.read().decode("utf-8", errors="replace").replace("\x00", "\N{REPLACEMENT CHARACTER}")
    except FileNotFoundError:
        return ""
    return redacted(text, environment)
