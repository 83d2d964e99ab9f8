"""The status machine of a job as a table, and the phases of a running job."""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """Status of a job. The database stores these strings."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True if no worker and no reaper will change the job again."""
        return self in FINAL_STATUSES


class Phase(StrEnum):
    """Current activity of a running job."""

    PREPARING = "preparing"
    ROLLOUT = "rollout"
    REFINING = "refining"
    DIAGNOSING = "diagnosing"
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"


class AttemptStatus(StrEnum):
    """Status of one attempt at a job."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"  # at a step boundary, on request: cancel, pause, or a worker's shutdown
    LOST = "lost"  # its lease expired


class Action(StrEnum):
    """An action that a user can request for a job."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    DELETE = "delete"


FINAL_STATUSES = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
"""Statuses that only change if a user resumes a failed or cancelled job."""

LEASED_STATUSES = frozenset({JobStatus.RUNNING, JobStatus.PAUSING, JobStatus.CANCELLING})
"""Statuses in which an attempt holds the job's lease."""

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.PAUSED, JobStatus.CANCELLED, JobStatus.FAILED}),
    JobStatus.RUNNING: frozenset(
        {
            JobStatus.SUCCEEDED,
            JobStatus.FAILED,
            JobStatus.PAUSING,
            JobStatus.CANCELLING,
            JobStatus.QUEUED,  # the attempt was lost, or its worker shut down
        }
    ),
    # A run may succeed or fail between a request and the step boundary at which the request would be carried out.
    JobStatus.PAUSING: frozenset(
        {JobStatus.PAUSED, JobStatus.CANCELLING, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.RUNNING}
    ),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED, JobStatus.SUCCEEDED, JobStatus.FAILED}),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
    JobStatus.CANCELLED: frozenset({JobStatus.QUEUED}),
}
"""Every legal change of status; `assert_transition` refuses all others."""

ACTION_RESULTS: dict[Action, dict[JobStatus, JobStatus]] = {
    Action.CANCEL: {
        JobStatus.QUEUED: JobStatus.CANCELLED,
        JobStatus.RUNNING: JobStatus.CANCELLING,
        JobStatus.PAUSING: JobStatus.CANCELLING,
        JobStatus.PAUSED: JobStatus.CANCELLED,
        JobStatus.CANCELLING: JobStatus.CANCELLING,
        JobStatus.CANCELLED: JobStatus.CANCELLED,
    },
    Action.PAUSE: {
        JobStatus.QUEUED: JobStatus.PAUSED,
        JobStatus.RUNNING: JobStatus.PAUSING,
        JobStatus.PAUSING: JobStatus.PAUSING,
        JobStatus.PAUSED: JobStatus.PAUSED,
    },
    Action.RESUME: {
        JobStatus.PAUSED: JobStatus.QUEUED,
        JobStatus.FAILED: JobStatus.QUEUED,
        JobStatus.CANCELLED: JobStatus.QUEUED,
        JobStatus.QUEUED: JobStatus.QUEUED,
        JobStatus.RUNNING: JobStatus.RUNNING,
    },
}
"""The status that each action leads to from each status. A missing entry is an illegal request (409); an entry with
the same status is an idempotent repeat of an earlier request. ``delete`` leads to no status: it removes a finished
job, see `legal_statuses`."""


class IllegalTransitionError(Exception):
    """A change of status that is not in the table: a bug in this code, or a lost race."""


def assert_transition(current: JobStatus, new: JobStatus) -> None:
    """Raise `IllegalTransitionError` unless ``current -> new`` is in `TRANSITIONS`."""
    if new not in TRANSITIONS[current]:
        legal = ", ".join(sorted(TRANSITIONS[current])) or "none, it is final"
        raise IllegalTransitionError(f"{current} -> {new} is not legal; legal from {current}: {legal}")


def legal_statuses(action: Action) -> list[JobStatus]:
    """Return the statuses in which `action` is legal, in the order of `JobStatus`."""
    legal = FINAL_STATUSES if action is Action.DELETE else ACTION_RESULTS[action].keys()
    return [status for status in JobStatus if status in legal]


def legal_actions(status: JobStatus) -> list[Action]:
    """Return the legal actions for a job in `status`, in the order of `Action`."""
    return [action for action in Action if status in legal_statuses(action)]
